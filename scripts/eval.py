#!/usr/bin/env python
"""Measure generated videos. See `python scripts/eval.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.eval"))
