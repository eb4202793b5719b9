#!/usr/bin/env python
"""Show and measure cross-identity faces. See `python scripts/face_sheet.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.preprocess.faces.sheet"))
