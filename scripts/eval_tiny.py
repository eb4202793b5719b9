#!/usr/bin/env python
"""Evaluate xdyna-tiny on held-out puppet clips. See `python scripts/eval_tiny.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.puppets.eval_tiny"))
