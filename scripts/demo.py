#!/usr/bin/env python
"""Animate a puppet with another puppet's dance: a first look without any input. See `python scripts/demo.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.demo"))
