"""`scripts/train.py --dry-run`: no configuration that is shipped is without a plan."""

import re

import pytest

from tests.tiers import long
from xdyna.cli.train import main
from xdyna.config.loader import names
from xdyna.core.program import run

QUICK = ["dynamics", "tiny/clips"]


@pytest.mark.parametrize("name", [*QUICK, *long(*sorted(set(names("experiment")) - set(QUICK)))])
def test_every_configuration_has_a_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those for footage, whose data sets need not be named for a plan."""
    assert run(main, [f"experiment={name}", "--dry-run"]) == 0
    output = capsys.readouterr().out
    (trained,) = re.findall(r"together +([\d.]+) M", output)
    assert float(trained) > 0
    peaks = dict(re.findall(r"^  (none|selective|full) .* ([\d.]+) GB(?:  <- this run)?$", output, re.M))
    assert float(peaks["full"]) <= float(peaks["selective"]) <= float(peaks["none"])
    assert output.count("<- this run") == 1
