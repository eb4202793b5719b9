#!/usr/bin/env python
"""Compare the networks of metrics with their libraries. See `make eval-parity`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package is not installed in that environment

from xdyna.core.program import run

if __name__ == "__main__":
    sys.exit(run("xdyna.evaluation.parity"))
