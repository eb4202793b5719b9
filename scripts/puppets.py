#!/usr/bin/env python
"""The rendered world. See `python scripts/puppets.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.puppets"))
