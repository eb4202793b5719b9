#!/usr/bin/env python
"""Measure the sampling loop, or training data. See `scripts/bench.py --help`, `scripts/bench.py loader --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.bench"))
