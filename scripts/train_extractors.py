#!/usr/bin/env python
"""Train the networks that metrics of the puppet world look through. See `python scripts/train_extractors.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.puppets.train_extractors"))
