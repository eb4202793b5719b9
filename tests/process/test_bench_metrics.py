import re
from pathlib import Path

import pytest

from xdyna.cli import bench
from xdyna.core.program import run
from xdyna.media import VideoWriter
from xdyna.puppets.world import SPLITS, render_clip


def rates(output: str) -> dict[str, float]:
    return {name: float(rate) for name, rate in re.findall(r"^(\w+) +([\d.]+) frames/s$", output, re.MULTILINE)}


def test_every_metric_that_was_asked_for_has_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["metrics", "--metrics", "psnr,flicker,cd_fvd", "--frames", "4", "--repeats", "2"]) == 0
    output = capsys.readouterr().out
    assert "4 frames of 128 x 128 px" in output
    assert set(rates(output)) == {"psnr", "flicker"}
    assert all(rate > 0 for rate in rates(output).values())
    assert "left out of the benchmark" in output  # cd_fvd


def test_on_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.mp4"
    seed = SPLITS["test"].start
    with VideoWriter(path, fps=12, size=(64, 96)) as writer:
        for frame in render_clip(seed, seed, seed, frames=5, size=(64, 96)).frames:
            writer.write(frame)
    assert run(bench.main, ["metrics", "--metrics", "mae", "--video", str(path), "--frames", "3"]) == 0
    output = capsys.readouterr().out
    assert "3 frames of 64 x 96 px" in output
    assert set(rates(output)) == {"mae"}


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--metrics", "psrn"], "did you mean 'psnr'"), (["--frames", "1"], "frames: got 1, expected 2 or more")],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["metrics", *options]) == 2
    assert message in capsys.readouterr().err
