#!/usr/bin/env python
"""Precompute training clips with their latents. See `python scripts/cache.py --help`."""

import sys

from xdyna.cli.guard import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.cache"))
