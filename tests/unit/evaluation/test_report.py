"""What a report says beside the paper's numbers, and about too few features."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import pytest

from xdyna.config.eval import ClipProtocol, EvalConfig
from xdyna.config.loader import compose
from xdyna.evaluation.engine import Result
from xdyna.evaluation.metric import LOWER, Column
from xdyna.evaluation.paper import TABLES
from xdyna.evaluation.report import Report, as_markdown

EXACT = {"psnr", "lpips_disco", "ssim", "fid", "cd_fvd", "dtfvd"}  # defined as published
CLIPS = {"cd_fvd", "dtfvd"}


def report_of(names: list[str], table: str, *, notes: dict[str, float] | None = None, **settings: Any) -> Report:
    protocol = dataclasses.asdict(EvalConfig(metrics=names, table=table, **settings))
    results = [
        Result(
            SimpleNamespace(name=name, version="1", columns=(Column(name, name.upper(), LOWER),)),  # type: ignore[arg-type]
            {name: 0.25},
            notes or {},
            3,
            {},
            {},
        )
        for name in names
    ]
    return Report(results, [], 3, protocol=protocol, table=table)


def differences(report: Report) -> dict[str, str]:
    text = as_markdown(report)
    header = next(line for line in text.splitlines() if line.startswith("| |"))
    row = next(line for line in text.splitlines() if line.startswith("| measured - X-Dyna"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, row)]
    return dict(zip([name.lower() for name in cells[0][1:]], cells[1][1:], strict=True))


@pytest.mark.parametrize("table", list(TABLES))
@pytest.mark.parametrize(
    ("settings", "without"),
    [
        ({}, set()),
        ({"clip": ClipProtocol(seed=5)}, set()),
        ({"clip": ClipProtocol(frames=32)}, CLIPS),
        ({"clip": ClipProtocol(choice="windows")}, CLIPS),
        ({"clip": ClipProtocol(short="repeat_last")}, CLIPS),
        ({"max_frames": 8}, EXACT),
    ],
)
def test_differences_only_where_definition_and_protocol_agree(
    table: str, settings: dict[str, Any], without: set[str]
) -> None:
    names = [name for name in TABLES[table].columns if name is not None]
    report = report_of(names, table, **settings)
    found = differences(report)
    assert {name for name, shown in found.items() if shown != "-"} == (set(names) & EXACT) - without
    text = as_markdown(report)
    for name in names:
        assert (f"- no difference for {name.upper()}: " in text) == (found[name] == "-")
        if found[name] != "-":
            paper = TABLES[table].rows["X-Dyna"][TABLES[table].columns.index(name)]
            assert found[name] == f"{0.25 - paper:+.3g}"


def test_protocols_of_the_tables_are_those_that_are_compared() -> None:
    for table in TABLES:
        config = compose(EvalConfig, "eval", [f"metrics={table}"]).config
        report = report_of(config.metrics, table, clip=config.clip, max_frames=config.max_frames)
        assert {name for name, shown in differences(report).items() if shown != "-"} <= EXACT
        assert set(config.metrics) >= {name for name in TABLES[table].columns if name is not None}


@pytest.mark.parametrize(("features", "said"), [(64, True), (65, False)])
def test_too_few_features_are_said(features: int, said: bool) -> None:
    notes = {"fid.channels": 64.0, "fid.features_truth": 1000.0, "fid.features_generated": float(features)}
    found = re.search(
        r"\*\*fid: 64 features for 64 channels.*biased upwards", as_markdown(report_of(["fid"], "table2", notes=notes))
    )
    assert (found is not None) == said
