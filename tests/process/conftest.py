"""A tiny checkpoint and small driving files for the programs."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.process.small import SMALL, standing_figure
from xdyna.cli.infer import main
from xdyna.core.program import run
from xdyna.media.video import VideoWriter
from xdyna.perception.draw import draw_pose
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete pipeline folder of 32 x 32 px with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_pipeline(build_pipeline(SMALL, seed=0), folder, untrained=True)
    return folder


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ref.png, driving.npz (a standing figure that waves, 7 frames at 10 fps), poses.mp4 (the same, drawn)."""
    folder = tmp_path_factory.mktemp("media")
    image = np.indices((96, 64)).sum(0)[..., None] * np.array([1, 1, 0.5])
    cv2.imwrite(str(folder / "ref.png"), image.astype(np.uint8))
    track = standing_figure(frames=7)
    track.save(folder / "driving.npz")
    with VideoWriter(folder / "poses.mp4", fps=10, size=track.size) as writer:
        for body, hands in zip(track.body, track.hands, strict=True):
            writer.write(draw_pose(body, hands, size=track.size))
    return folder


@pytest.fixture
def infer(checkpoint: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs infer.py in a folder of its own with quick settings; arguments given here win. Returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str | Path) -> int:
        given = [str(a) for a in arguments]
        defaults = {
            "--ref": media / "ref.png",
            "--drive": media / "driving.npz",
            "--checkpoint": checkpoint,
            "--steps": 2,
        }
        if "--batch" in given:
            defaults = {"--checkpoint": checkpoint, "--steps": 2}
        for option, value in defaults.items():
            if option not in given:
                given += [option, str(value)]
        return run(main, given)

    return call
