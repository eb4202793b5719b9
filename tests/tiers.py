"""Tiers of tests: `long` cases run in `make test-long` and in continuous integration, all others in `make test`."""

from typing import Any

import pytest


def long(*cases: Any) -> list[Any]:
    """Cases for pytest.mark.parametrize that are long; a tuple holds the values of several arguments."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long) for case in cases]
