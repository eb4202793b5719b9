"""Who was found twice, and what somebody wears."""

import cv2
import numpy as np
import pytest

from xdyna.perception import Person
from xdyna.perception.crowd import covered, distinct, torso_colors, unlike

RNG = np.random.default_rng(0)
FIGURE = RNG.uniform(0, 1, (33, 2)) * (100, 300)
FIGURE[[11, 12, 23, 24]] = (30, 60), (70, 60), (35, 150), (65, 150)  # a torso of 90 px


def pose(*, left: float = 0, top: float = 0, scale: float = 1, sure: float = 0.95, noise: float = 0) -> np.ndarray:
    points = FIGURE * scale + (left, top) + RNG.normal(0, noise, (33, 2)) if noise else FIGURE * scale + (left, top)
    return np.column_stack([points, np.full(33, sure)])


def test_the_surest_of_two_finds_of_one_person_is_kept():
    first, again, other = pose(sure=0.93), pose(left=8, noise=5, sure=0.97), pose(left=160, sure=0.9)
    kept = distinct([first, again, other])
    assert [id(each) for each in kept] == [id(again), id(other)]
    assert [id(each) for each in distinct([first, again, other], known=[first])] == [id(other)]


def test_a_part_of_somebody_is_no_other_person():
    """A leg in a square of its own looks like a small person."""
    whole, leg = pose(), pose(left=20, top=170, scale=0.4)
    assert [id(each) for each in distinct([whole, leg], known=[whole])] == []
    beside = pose(left=130, top=170, scale=0.4)
    before = pose(left=60, top=50, scale=0.8)  # somebody nearly as tall before them
    assert [id(each) for each in distinct([beside, before], known=[whole])] == [id(beside), id(before)]
    assert len(distinct([leg, whole])) == 1


def dressed(frame: np.ndarray, left: int, color: tuple[int, int, int], *, width: int = 40) -> Person:
    """Paints a torso of a colour; the person whose it is."""
    cv2.rectangle(frame, (left, 50), (left + width, 110), color, -1)
    body = np.zeros((18, 3), np.float32)
    body[[2, 5, 11, 8]] = (left, 50, 1), (left + width, 50, 1), (left + width, 110, 1), (left, 110, 1)
    box = np.array([left, 20, left + width, 190], np.float32)
    return Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32), box, 0.9)


def test_colours_tell_people_apart():
    frame = RNG.integers(0, 255, (200, 300, 3)).astype(np.uint8)
    red, green = dressed(frame, 20, (180, 40, 40)), dressed(frame, 100, (40, 150, 60))
    darker = dressed(frame, 200, (165, 36, 36))
    first, second, third = (torso_colors(frame, one) for one in (red, green, darker))
    assert first.shape == (256,)
    assert first.dtype == np.float32
    assert first.sum() == pytest.approx(1)
    assert unlike(first, first) == 0
    assert unlike(first, second) == pytest.approx(1, abs=0.02)
    assert unlike(first, third) < 0.3, "the same red in a little less light"


def test_saturated_colours_count():
    frame = np.zeros((200, 300, 3), np.uint8)
    pure, blue = dressed(frame, 20, (255, 0, 0)), dressed(frame, 100, (0, 0, 255))
    assert unlike(torso_colors(frame, pure), torso_colors(frame, blue)) > 0.9


def test_no_colours_of_a_torso_that_is_not_seen():
    frame = np.zeros((200, 300, 3), np.uint8)
    person = dressed(frame, 20, (180, 40, 40))
    person.body[8, 2] = 0.1
    assert torso_colors(frame, person) is None
    tiny = dressed(frame, 100, (1, 2, 3), width=3)
    assert torso_colors(frame, tiny) is not None
    tiny.body[[8, 11], 1] = 52
    assert torso_colors(frame, tiny) is None
    outside = dressed(frame, 20, (180, 40, 40))
    outside.body[:, 0] += 400
    assert torso_colors(frame, outside) is None


def test_a_square_is_covered_by_who_fills_it():
    """Not by who stands beside it, nor by who lies off in a corner, at whatever distance."""
    someone = pose(left=200, top=200)  # about 200..300 x 200..500
    assert covered((210, 220, 80), [someone])
    assert covered((210, 220, 80), [pose(left=900), someone])
    assert not covered((100, 100, 200), [someone]), "a quarter of it is"
    for left, top in ((0, 0), (900, 900), (0, 900), (900, 0)):
        assert not covered((left, top, 80), [someone]), (left, top)


def test_somebody_before_another_is_no_part_of_them():
    """Nearly as tall, wholly within the other's box, in another posture."""
    whole, bowing = pose(), pose(left=10, top=30, scale=0.8)
    bowing[:, 1] = 300 - bowing[:, 1]
    assert [id(each) for each in distinct([bowing], known=[whole])] == [id(bowing)]


def test_what_is_behind_a_slanting_torso_is_not_worn():
    """The corners of its box show the wall."""
    seen = []
    for wall in ((20, 20, 200), (200, 20, 20)):
        frame = np.full((200, 300, 3), wall, np.uint8)
        joints = np.array([(60, 20), (130, 60), (90, 130), (20, 90)])  # right shoulder, left shoulder, hips
        cv2.fillConvexPoly(frame, joints, (40, 150, 60))
        person = dressed(frame.copy(), 20, (0, 0, 0))
        person.body[[2, 5, 11, 8], :2] = joints
        seen.append(torso_colors(frame, person))
    assert unlike(*seen) < 0.05
