"""Sharing cases among processes, and going on where a video cannot be read."""

from pathlib import Path

import numpy as np

from tests.unit.evaluation.test_inputs import frames, write_images
from xdyna.evaluation import engine
from xdyna.evaluation.inputs import Entry
from xdyna.evaluation.metrics.images import FrameMetric
from xdyna.evaluation.report import Report, as_csv, as_markdown
from xdyna.evaluation.store import Store


def test_shares_are_disjoint_and_whole() -> None:
    entries = [Entry(f"{k:02d}", Path("x")) for k in np.random.default_rng(0).permutation(11)]
    for world in (1, 2, 3):
        shares = [engine.share(entries, rank=rank, world=world) for rank in range(world)]
        assert sorted(e.id for part in shares for e in part) == [f"{k:02d}" for k in range(11)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_damaged_video_is_listed_and_the_others_are_measured(tmp_path: Path) -> None:
    entries = []
    for k in range(3):
        first, second = (write_images(tmp_path / kind / str(k), frames(k)) for kind in ("g", "t"))
        entries.append(Entry(str(k), first, second))
    (tmp_path / "g" / "1" / "002.png").write_bytes(b"damaged in the middle")
    (tmp_path / "t" / "2" / "000.png").write_bytes(b"damaged at once")
    before = engine.preflight(entries)
    assert list(before) == ["2"]
    metric, store = FrameMetric("mae"), Store(tmp_path / "records")
    seen: list[str] = []
    outcomes = engine.measure(entries, [metric], store, failures=before, advance=seen.append)
    assert seen == ["0", "1", "2"]
    assert engine.measure(entries, [metric], store).keys() == outcomes.keys()  # without the pre-flight, too
    outcomes = engine.merge_outcomes([engine.dump_outcomes(outcomes)])
    failures = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure}
    assert list(failures) == ["1", "2"]
    assert "002.png" in failures["1"]
    results = engine.reduce([metric], outcomes, store)
    assert (results[0].measured, results[0].values["mae"]) == (1, 0)
    report = Report(results, [], 3, failures=failures)
    assert not report.complete
    assert Report(results, [], 3).complete
    assert f"- 1: {failures['1']}" in as_markdown(report)
    assert as_csv(report).splitlines()[1:] == ["0,0.0", "1,", "2,"]
