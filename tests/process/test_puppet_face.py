"""A puppet that makes somebody's faces, against puppets whose faces are known."""

import dataclasses

import numpy as np
import pytest

from xdyna.evaluation.metrics.people import expression_coefficients
from xdyna.perception.errors import NoFaceError
from xdyna.puppets.actor import act, expressions, turns
from xdyna.puppets.world import render_clip
from xdyna.puppets.world.motion import EXPRESSIONS

FRAMES = 12
SIZE = (128, 128)


def acting(**values: np.ndarray) -> np.ndarray:
    """Expression vectors of a neutral face but for the given values."""
    vectors = np.zeros((FRAMES, len(EXPRESSIONS)))
    vectors[:, [EXPRESSIONS.index("eye_open_left"), EXPRESSIONS.index("eye_open_right")]] = 0.8
    for name, value in values.items():
        vectors[:, EXPRESSIONS.index(name)] = value
    return vectors


def test_a_clip_with_a_given_expression_and_turn() -> None:
    rows, yaw = acting(mouth_open=np.linspace(0, 1, FRAMES)), np.linspace(-0.4, 0.4, FRAMES)
    clip = render_clip(3, 4, 5, frames=FRAMES, size=(256, 256), expression=rows, yaw=yaw)
    np.testing.assert_allclose(clip.expression, rows, atol=1e-6)
    gap = expression_coefficients(clip.face)[:, 0]
    assert (np.diff(gap) > 0).all()
    nose = clip.face[:, 30, 0] - clip.face[:, [0, 16], 0].mean(1)
    assert (np.diff(nose) > 0).all()
    plain = render_clip(3, 4, 5, frames=FRAMES, size=(256, 256))
    np.testing.assert_array_equal(plain.body[:, 1:8], clip.body[:, 1:8])  # the rest of the motion stays
    for wrong, name in (({"expression": rows[:3]}, "expression"), ({"yaw": yaw[:3]}, "yaw")):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            render_clip(3, 4, 5, frames=FRAMES, **wrong)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mouth_open", np.linspace(0, 1, FRAMES)),
        ("smile", np.linspace(-0.8, 0.8, FRAMES)),
        ("brow_raise", np.linspace(-0.8, 0.8, FRAMES)),
    ],
)
def test_expressions_are_read_off_landmarks(name: str, values: np.ndarray) -> None:
    clip = render_clip(7, 4, 5, frames=FRAMES, size=(256, 256), expression=acting(**{name: values}))
    read = expressions(clip.face)[:, EXPRESSIONS.index(name)]
    assert np.corrcoef(read, values)[0, 1] > 0.95
    assert np.ptp(read) > 0.5


def test_eyes_are_open_by_what_is_usual_and_shut_when_they_shut() -> None:
    opening = np.full(FRAMES, 0.8)
    opening[5:8] = 0.0
    rows = acting(eye_open_left=opening, eye_open_right=opening)
    clip = render_clip(7, 4, 5, frames=FRAMES, size=(256, 256), expression=rows)
    read = expressions(clip.face)[:, EXPRESSIONS.index("eye_open_left")]
    np.testing.assert_allclose(read[opening > 0], 0.8, atol=0.1)
    assert (read[opening == 0] < 0.15).all()


def test_turns_and_gaps() -> None:
    yaw = np.linspace(-0.5, 0.5, FRAMES)
    clip = render_clip(7, 4, 5, frames=FRAMES, size=(256, 256), expression=acting(), yaw=yaw)
    read = turns(clip.face)
    assert np.corrcoef(read, yaw)[0, 1] > 0.99
    gap = clip.face.copy()
    gap[[0, 4, 5]] = 0
    filled = turns(gap)
    assert filled[0] == filled[1] == pytest.approx(read[1])
    assert filled[4] == filled[5] == pytest.approx(read[3])


def test_the_head_is_where_the_persons_is_and_as_large_as_in_the_reference() -> None:
    driver = render_clip(7, 11, 5, frames=FRAMES, size=SIZE).track()
    still = render_clip(21, 30, 6, frames=1, size=SIZE)
    acted = act(driver, still.body[0])
    body = acted.track.body
    wide = np.linalg.norm(body[:, 16, :2] - body[:, 17, :2], axis=1)
    np.testing.assert_allclose(wide, np.linalg.norm(still.body[0, 16, :2] - still.body[0, 17, :2]), rtol=0.05)
    np.testing.assert_array_equal(body[:, 1:14], driver.body[:, 1:14])
    neck = driver.body[:, 1, :2]
    ours, theirs = body[:, 0, :2] - neck, driver.body[:, 0, :2] - neck
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.9999
    far = np.linalg.norm(still.body[0, 0, :2] - still.body[0, 1, :2])
    assert np.median(np.linalg.norm(ours, axis=1)) == pytest.approx(far, rel=0.02)
    slope = np.degrees(np.arctan2(*(acted.track.face[:, 42:48].mean(1) - acted.track.face[:, 36:42].mean(1)).T[1::-1]))
    given = np.degrees(np.arctan2(*(driver.face[:, 42:48].mean(1) - driver.face[:, 36:42].mean(1)).T[1::-1]))
    np.testing.assert_allclose(slope, given, atol=1.0)


def test_landmarks_lie_on_the_images_face() -> None:
    """The iris is dark where the eyes' landmarks are, and the cheek has the skin's colour in every frame."""
    driver = render_clip(7, 11, 5, frames=FRAMES, size=SIZE, expression=acting()).track()
    still = render_clip(21, 30, 6, frames=1, size=SIZE)
    acted = act(driver, still.body[0])
    for image, points in zip(acted.frames, acted.track.face, strict=True):
        x, y = np.round(points[36:42, :2].mean(0)).astype(int)
        eye = image[y - 1 : y + 2, x - 1 : x + 2].astype(int).sum(-1).min()
        nose = image[tuple(np.round(points[29, 1::-1]).astype(int))].astype(int).sum()
        assert eye < nose - 150


def test_nobody() -> None:
    driver = render_clip(7, 11, 5, frames=3, size=SIZE).track()
    still = render_clip(21, 30, 6, frames=1, size=SIZE).body[0]
    with pytest.raises(NoFaceError, match="no face was found"):
        act(dataclasses.replace(driver, face=np.zeros_like(driver.face)), still)
    headless = still.copy()
    headless[16:] = 0
    with pytest.raises(NoFaceError, match="have no head"):
        act(driver, headless)
