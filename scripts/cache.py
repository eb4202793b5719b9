#!/usr/bin/env python
"""Precompute training clips with their latents. See `python scripts/cache.py --help`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.data.write_cache"))
