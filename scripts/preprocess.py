#!/usr/bin/env python
"""From raw footage to a training set. See `python scripts/preprocess.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.preprocess"))
