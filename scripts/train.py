#!/usr/bin/env python
"""Train one stage. See `python scripts/train.py --help`; several GPUs: `accelerate launch scripts/train.py ...`."""

import sys

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.cli.train"))
