"""Which frames of a driving file are used, where its time stamps are absurd; and what may make faces."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.process.small import standing_figure
from xdyna.core.errors import UsageError
from xdyna.pipelines.controls import face_source
from xdyna.pipelines.driving import open_driving


@pytest.mark.parametrize("last", [1e300, 1e15, 1e9])
def test_time_stamps_that_mean_endless_videos(last: float, tmp_path: Path) -> None:
    track = standing_figure(frames=4)
    replace(track, times=np.array([0, 0.1, 0.2, last])).save(tmp_path / "far.npz")
    with pytest.raises(UsageError, match=r"far\.npz has 4 frames in .* s by its time stamps.*expected at most 1000000"):
        open_driving(tmp_path / "far.npz")
    if last < 1e300:
        assert len(open_driving(tmp_path / "far.npz", frames=3).rows) == 3


def test_a_rate_of_nothing(tmp_path: Path) -> None:
    track = standing_figure(frames=3)
    replace(track, times=track.times * 1e8).save(tmp_path / "slow.npz")
    with pytest.raises(UsageError, match=r"slow\.npz has 3 frames"):
        open_driving(tmp_path / "slow.npz")


@pytest.mark.parametrize(
    "name", ["os.abort", "subprocess.Popen", "os.path", "builtins.exit", "no.where", "a b", "..x.Y", "os"]
)
def test_only_face_sources_are_called(name: str) -> None:
    with pytest.raises(UsageError, match="expected the dotted name of a class like"):
        face_source(name)
    assert callable(face_source("xdyna.puppets.actor.PuppetFaces"))
