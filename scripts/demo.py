#!/usr/bin/env python
"""Animate a sample figure: a first look without any input. See `python scripts/demo.py --help`."""

import sys

from xdyna.cli.guard import run
from xdyna.cli.demo import main

if __name__ == "__main__":
    sys.exit(run(main))
