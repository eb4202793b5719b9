#!/usr/bin/env python
"""Measure a small model on the held-out puppet clips. See `python scripts/tiny_report.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.puppets.report"))
