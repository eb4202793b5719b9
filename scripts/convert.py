#!/usr/bin/env python
"""Turn published weights into one pipeline folder. See `python scripts/convert.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.convert"))
