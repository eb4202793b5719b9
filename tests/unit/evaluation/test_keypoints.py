"""A backend beside a pose video: what is known about both comes out."""

from pathlib import Path

import numpy as np
import pytest

from xdyna.cli.eval import main as eval_main
from xdyna.core.errors import UsageError
from xdyna.core.program import run
from xdyna.evaluation import keypoints
from xdyna.evaluation.keypoints import BEGIN, END, compare, table
from xdyna.media.writer import VideoWriter
from xdyna.perception.draw import draw_pose
from xdyna.perception.types import Person, missing_points

SIZE = (896, 512)
SHIFT = np.array([6.0, 8.0])  # 10 px


def bodies(count: int) -> np.ndarray:
    """(T, 18, 3) somebody who stands apart from himself in every joint and walks to the right; 700 px high."""
    body = np.zeros((18, 3), np.float32)
    places = {0: (256, 90), 1: (256, 190), 2: (200, 190), 3: (150, 260), 4: (130, 340), 5: (312, 190), 6: (360, 260)}
    places |= {7: (380, 340), 8: (226, 440), 9: (216, 610), 10: (206, 790), 11: (286, 440), 12: (296, 610)}
    for joint, place in (places | {13: (306, 790)}).items():
        body[joint] = (*place, 1)
    moved = np.repeat(body[None], count, axis=0)
    moved[:, :14, 0] += 4 * np.arange(count)[:, None]
    return moved


class Known:
    """A backend that has the joints of a pose video, each 10 px away, and loses some."""

    name, version = "known", "1"

    def __init__(self, found: np.ndarray) -> None:
        self.found, self.row = found, 0

    def detect(self, frame: np.ndarray) -> list[Person]:
        body = self.found[self.row].copy()
        self.row += 1
        body[body[:, 2] > 0, :2] += SHIFT
        seen = body[body[:, 2] > 0, :2]
        if not len(seen):
            return []
        box = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
        return [Person(body=body, hands=missing_points(2, 21), face=missing_points(68), box=box, score=1.0)]


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    drawn = bodies(6)
    drawn[4, 4, 2] = 0  # a wrist that is not drawn
    with VideoWriter(tmp_path / "poses.mkv", fps=8, size=SIZE, lossless=True) as writer:
        for body in drawn:
            writer.write(draw_pose(body, size=SIZE))
    return tmp_path / "poses.mkv"


def test_what_is_known_comes_out(poses: Path) -> None:
    ours = bodies(6)
    ours[2, 9, 2] = 0  # a knee that is not found
    ours[3, 10, 2] = 0.2  # an ankle that is found too unsurely to be drawn
    ours[5] = 0  # nobody
    found = compare(poses, poses, Known(ours))
    distance = found.distance()
    expected = np.full((6, 14), 10.0)
    expected[2, 9] = expected[3, 10] = expected[4, 4] = np.nan
    expected[5] = np.nan
    np.testing.assert_allclose(distance, expected, atol=0.8)
    assert found.height() == pytest.approx(100 + 250 + 350, abs=2)
    assert found.seconds >= 0
    told = table([("clip", found)])
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in told.splitlines() if line.startswith("|")}
    everything = [cell.strip() for cell in cells["all"]]
    assert everything[0] == "67", "6 x 14 without 14, 1, 1 and 1"
    assert float(everything[1]) == pytest.approx(10, abs=0.5)
    assert float(everything[4]) == pytest.approx(10 / 700, abs=0.001)
    assert everything[5:] == [everything[5], "100.0%", "16", "1"], "drawn and not found: 14 + 1 + 1; the other way: 1"
    assert [cell.strip() for cell in cells["right wrist"]][-2:] == ["1", "1"]
    assert "clip: 6 frames, height 700 px" in told


def test_frames_are_spread_evenly(poses: Path) -> None:
    chosen = bodies(6)[[0, 2, 5]]  # of 0, 2.5 and 5
    assert np.nanmax(compare(poses, poses, Known(chosen), frames=3).distance()) < 11


def test_the_program(poses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(keypoints, "get_backend", lambda name: Known(bodies(6)))
    doc = tmp_path / "a.md"
    doc.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert run(eval_main, ["keypoints", str(poses), str(poses), "--doc", str(doc)]) == 0
    written = doc.read_text()
    assert written.startswith(f"before\n{BEGIN}\nmediapipe 1\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "| left ankle | 6 |" in written
    assert "old" not in written
    assert "| left ankle | 6 |" in capsys.readouterr().out


def test_wrong_usage(poses: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.mkv"
    with VideoWriter(other, fps=8, size=(64, 48), lossless=True) as writer:
        writer.write(np.zeros((64, 48, 3), np.uint8))
    (tmp_path / "no_marks.md").write_text("text")
    for words, said in (
        ([poses], "1 videos were given; expected pairs"),
        ([poses, poses, "--frames", "0"], "--frames 0: expected 1 or more"),
        ([poses, other], "has 6 frames of 896x512"),
        ([poses, poses, "--doc", tmp_path / "no_marks.md"], "expected the lines <!-- measured: begin -->"),
    ):
        assert run(eval_main, ["keypoints", *map(str, words)]) == 2, words
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error


def test_pose_maps_of_half_bodies_alone(tmp_path: Path) -> None:
    half = bodies(2)
    half[:, 9:14] = 0
    with VideoWriter(tmp_path / "half.mkv", fps=8, size=SIZE, lossless=True) as writer:
        for body in half:
            writer.write(draw_pose(body, size=SIZE))
    found = compare(tmp_path / "half.mkv", tmp_path / "half.mkv", Known(half))
    with pytest.raises(UsageError, match="no pose map shows a whole body"):
        found.height()
