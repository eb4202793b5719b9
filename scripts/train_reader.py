#!/usr/bin/env python
"""Train the network that reads mouth and eye opening of puppets. See `python scripts/train_reader.py --help`."""

import sys

from xdyna.cli.guard import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.train_reader"))
