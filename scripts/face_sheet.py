#!/usr/bin/env python
"""Show and measure cross-identity faces. See `python scripts/face_sheet.py --help`."""

import sys

from xdyna.cli.guard import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.face_sheet"))
