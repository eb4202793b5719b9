#!/usr/bin/env python
"""Train the network that reads mouth and eye opening of puppets. See `python scripts/train_reader.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.puppets.train_reader"))
