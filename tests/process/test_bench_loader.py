"""How fast training data are made: the arithmetic, and one run of the program."""

from pathlib import Path

import pytest

from tests.unit.data.footage_sets import build_set, record
from xdyna.cli import bench
from xdyna.core.errors import UsageError
from xdyna.data.bench import Rate


def test_workers_that_a_run_needs() -> None:
    rate = Rate(workers=2, clips=40, frames=40 * 17, seconds=5.0)
    assert rate.clips_per_worker == 4.0
    assert rate.needed(clips_per_step=8, steps_per_second=1.0) == 2
    assert rate.needed(clips_per_step=8, steps_per_second=1.01) == 3
    assert Rate(workers=0, clips=10, frames=10, seconds=10.0).needed(clips_per_step=1, steps_per_second=0.1) == 1


def test_footage_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_set(tmp_path / "set", [record("human0"), record("human1")])
    argv = ["loader", "--workers", "0", "1", "--batches", "2", "--steps-per-second", "3", "data.source=footage"]
    sizes = ["data.height=64", "data.width=64", "data.frames=3", "data.scene_ratio=0"]
    assert bench.main([*argv, f"data.manifests=[{folder}]", *sizes]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "footage: clips of 1 + 3 frames, 64 x 64 px, batches of 1"
    for line, workers in zip(lines, (0, 1), strict=True):
        assert line.startswith(f"workers  {workers}:")
        clips, frames = (float(line.split(unit)[0].split()[-1]) for unit in (" clips/s", " frames/s"))
        assert frames == pytest.approx(4 * clips, abs=0.2)
        assert "(2 clips in" in line
        assert "3 steps/s need" in line


def test_wrong_options_are_named() -> None:
    with pytest.raises(UsageError, match="no finished data set"):
        bench.main(["loader", "data.source=footage", "data.manifests=[/nowhere]"])
