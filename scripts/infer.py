#!/usr/bin/env python
"""Animate one image of a person with a driving video. See `python scripts/infer.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.infer"))
