"""Counting people, and numbers of one person, on made-up keypoints; the real detector in the slow test."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.preprocess.figures import JOINTS, BlockBackend, backdrop, put_person, write_video
from xdyna.media import read_frames
from xdyna.perception import Person, PoseTrack
from xdyna.preprocess import people

SIZE = (200, 100)


def person(left: float, top: float, right: float, bottom: float, score: float = 0.9) -> Person:
    box = np.array([left, top, right, bottom], np.float32)
    return Person(
        np.zeros((18, 3), np.float32), np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32), box, score
    )


def test_who_counts():
    main = person(10, 10, 60, 190)
    beside, small, twice = person(62, 20, 99, 180), person(70, 100, 80, 140), person(12, 30, 58, 120)
    assert people.counted([main]) == [main]
    assert len(people.counted([main, beside])) == 2
    assert len(people.counted([main, small])) == 1, "a passer-by far away"
    assert len(people.counted([main, twice])) == 1, "the same person found twice"
    assert people.counted([]) == []


class OneAtATime(BlockBackend):
    """As a detector that sees one person in a frame, however many there are."""

    name = "one"

    def detect(self, frame: np.ndarray) -> list[Person]:
        return super().detect(frame)[:1]


@pytest.mark.parametrize("other", [(120, 10, 155, 110), (2, 10, 40, 100)], ids=["right", "left"])
def test_people_beside_the_one_who_was_found(tmp_path: Path, other: tuple[int, int, int, int]):
    first = put_person(backdrop((128, 160)), (55, 10, 105, 120))
    frames = [first, put_person(first, other, channel=1), backdrop((128, 160))]
    video = write_video(tmp_path / "a.mp4", frames)
    crop = (0, 4, 160, 120)
    looks = people.look_at(
        video, np.arange(3), backend=OneAtATime(), size=(128, 160), crop=crop, cache=tmp_path / "cache"
    )
    assert [look.people for look in looks] == [1, 2, 0]
    np.testing.assert_allclose(looks[0].boxes[0] * [160, 120, 160, 120] + [0, 4, 0, 4], [55, 10, 105, 120], atol=2)
    np.testing.assert_allclose(looks[1].boxes[1] * [160, 120, 160, 120] + [0, 4, 0, 4], other, atol=2)


def track(count: int = 10, *, seen: int = 10, confidence: float = 0.8, hidden: int = 0, faces: int = 5) -> PoseTrack:
    """A person 100 px tall and 50 px broad at (20, 30); `hidden` of the 14 joints missing."""
    body = np.zeros((count, 18, 3), np.float32)
    body[:seen, :, :2] = [20, 30] + JOINTS * [50, 100]
    body[:seen, :, 2] = confidence
    body[:, 14 - hidden : 14] = 0
    face = np.zeros((count, 68, 3), np.float32)
    face[:faces] = [45, 36, 1]
    return PoseTrack(body=body, hands=np.zeros((count, 2, 21, 3)), face=face, size=SIZE, times=np.arange(count) / 10,
                     frame_index=np.arange(count))  # fmt: skip


def test_numbers_of_a_person():
    numbers = people.person_numbers(track())
    assert numbers.share == 1
    assert numbers.height == pytest.approx(0.89 * 100 / SIZE[0], abs=1e-3)
    assert numbers.confidence == pytest.approx(0.8)
    assert (numbers.hidden, numbers.face) == (0, 0.5)
    partly = people.person_numbers(track(seen=6, hidden=7, faces=0))
    assert (partly.share, partly.hidden, partly.face) == (pytest.approx(0.6), pytest.approx(0.5), 0)
    assert partly.confidence == pytest.approx(0.8), "over the joints that are seen"
    nobody = people.person_numbers(track(seen=0, faces=0))
    assert (nobody.share, nobody.height, nobody.hidden) == (0, 0, 1)


def test_boxes_stay_in_the_image():
    moved = track(seen=8, faces=8)
    moved.body[..., 0] -= 40  # half of it lies outside now
    boxes = people.person_boxes(moved)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[0], [0, 36, 45, 125], atol=0.1)
    assert (boxes[8:] == 0).all()


def test_masks_are_empty_without_the_person(tmp_path: Path):
    frames = [put_person(backdrop((128, 160)), (30, 10, 80, 120))] * 4
    video = write_video(tmp_path / "a.mp4", frames)
    there = np.array([True, False, True, True])
    masks = people.person_masks(video, np.arange(4), backend=BlockBackend(), crop=(20, 0, 128, 128), there=there)
    assert masks.shape == (4, 64, 64)
    assert not masks[1].any()
    rows, columns = np.nonzero(masks[2])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == pytest.approx((5, 29, 5, 59), abs=1)


@pytest.mark.slow
def test_two_dancers(shared_dir: Path, tmp_path: Path):
    """Two real people pasted side by side are two, each alone is one."""
    pytest.importorskip("mediapipe", reason="needs the perception extra")
    rows = range(100, 180, 20)
    first, second = (list(read_frames(shared_dir / "data" / f"dance_{k}.mp4", rows)) for k in (1, 2))
    pair = [np.hstack([a[154:896, :406], b[30:772, 29:475]]) for a, b in zip(first, second, strict=True)]
    backend = people.pose_backend("mediapipe")
    for name, frames, expected in (("pair", pair, 2), ("one", first, 1), ("other", second, 1)):
        video = write_video(tmp_path / f"{name}.mp4", frames)
        height, width = frames[0].shape[:2]
        looks = people.look_at(
            video, np.arange(4), backend=backend, size=(height, width), crop=(0, 0, width, height), cache=tmp_path
        )
        assert [look.people for look in looks] == [expected] * 4
