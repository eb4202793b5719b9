"""`scripts/train.py --dry-run`: no configuration that is shipped is without a plan."""

import re

import pytest

from xdyna.cli.train import CONFIGS, main
from xdyna.core.program import run

NAMES = sorted(
    str(path.relative_to(CONFIGS / "train").with_suffix(""))
    for path in (CONFIGS / "train").rglob("*.yaml")
    if not path.name.startswith("_")
)


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_has_a_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["data.manifests=[somewhere]"] if "footage" in name else []
    assert run(main, ["--config", name, "--dry-run", *more]) == 0
    output = capsys.readouterr().out
    (trained,) = re.findall(r"together +([\d.]+) M", output)
    assert float(trained) > 0
    peaks = dict(re.findall(r"^  (none|selective|full) .* ([\d.]+) GB(?:  <- this run)?$", output, re.M))
    assert float(peaks["full"]) <= float(peaks["selective"]) <= float(peaks["none"])
    assert output.count("<- this run") == 1
