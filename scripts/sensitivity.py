#!/usr/bin/env python
"""Show how metrics react to known damage of puppet clips. See `python scripts/sensitivity.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.puppets.sensitivity"))
