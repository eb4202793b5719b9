#!/usr/bin/env python
"""Measure the sampling loop. See `python scripts/bench.py --help`."""

import sys

from xdyna.cli.guard import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.bench"))
