"""What a clip says about itself, against its pixels."""

import time

import cv2
import numpy as np
import pytest

from xdyna.perception import face_patches
from xdyna.puppets.world import DYNAMIC_SCENES, EXPRESSIONS, STATIC_SCENES, render_clip

_MOUTH = EXPRESSIONS.index("mouth_open")


def grown(mask: np.ndarray, px: int) -> np.ndarray:
    """(N, H, W) masks grown (or shrunk, px < 0) by |px|."""
    kernel = np.ones((2 * abs(px) + 1,) * 2, np.uint8)
    change = cv2.dilate if px > 0 else cv2.erode
    return np.stack([change(m.astype(np.uint8), kernel) for m in mask]).astype(bool)


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_parts_figure_and_scene_exactly(seed: int) -> None:
    first, second = (render_clip(seed, seed, scene, frames=3, stride=3) for scene in (seed, seed + 50))
    scene = render_clip(seed, seed, seed, frames=3, stride=3, kind="scene")
    assert np.array_equal(first.mask, second.mask)
    assert np.array_equal(first.secondary, second.secondary)
    outside, inside = ~grown(first.mask, 1), grown(first.mask, -2)
    assert np.array_equal(first.frames[outside], scene.frames[outside])
    # Where two smoothed edges meet inside the figure a few pixels let a little of the scene through.
    shining = np.abs(first.frames.astype(int) - second.frames)[inside].max(-1)
    assert (shining > 0).mean() < 0.003
    assert shining.max() <= 12
    assert (first.frames != scene.frames).any(-1)[inside].mean() > 0.97
    assert inside.mean() > 0.05


@pytest.mark.parametrize("seed", range(100, 112))
def test_keypoints_lie_on_the_figure(seed: int) -> None:
    clip = render_clip(seed, seed, seed, frames=6, stride=4)
    points = np.concatenate([clip.body, clip.face, clip.hands[:, :, [0, 9]].reshape(6, -1, 3)], 1)
    x, y = np.rint(points[..., :2]).astype(int).transpose(2, 0, 1)
    hit = grown(clip.mask, 1)[np.arange(6)[:, None], y, x]
    assert hit.all(), f"points off the figure: {np.argwhere(~hit)[:5].tolist()}"


def test_left_and_right_are_the_figures_own() -> None:
    body, hands = (
        np.concatenate([getattr(render_clip(s, s, s, frames=4), n) for s in range(8)]) for n in ("body", "hands")
    )
    for right, left in ((2, 5), (8, 11), (14, 15), (16, 17)):
        assert (body[:, right, 0] < body[:, left, 0]).all()
    for side, wrist in ((0, 7), (1, 4)):
        np.testing.assert_allclose(hands[:, side, 0], body[:, wrist], atol=1e-4)


def test_an_open_mouth_is_dark_between_the_inner_lips() -> None:
    opened, dark = [], []
    for seed in range(12):
        clip = render_clip(seed, seed, 0, frames=6, stride=5, size=(384, 384), scene_kind="gradient")
        for frame, points, values in zip(clip.frames, clip.face, clip.expression, strict=True):
            lips = np.zeros(frame.shape[:2], np.uint8)
            cv2.fillPoly(lips, [np.rint(points[48:60, :2]).astype(np.int32)], 1)
            colors = frame[lips == 1].astype(int)
            cave = (np.abs(colors - (96, 22, 36)).max(-1) < 12).sum()
            opened.append(values[_MOUTH])
            dark.append(cave / (points[54, 0] - points[48, 0]) ** 2)
    opened, dark = np.array(opened), np.array(dark)
    assert np.corrcoef(opened, dark)[0, 1] > 0.85
    assert dark[opened < 0.05].max() < 0.02
    assert (dark[opened > 0.8] > 0.12).all()


def test_inner_lips_part_with_the_opening() -> None:
    clip = render_clip(4, 4, 4, frames=40, stride=2, size=(256, 256))
    gap = np.linalg.norm(clip.face[:, 66, :2] - clip.face[:, 62, :2], axis=1)
    assert np.corrcoef(gap, clip.expression[:, _MOUTH])[0, 1] > 0.99


def test_open_eyes_are_white_between_their_lids() -> None:
    for side, points_of in (("left", slice(42, 48)), ("right", slice(36, 42))):
        opened, white = [], []
        for seed in (1, 2, 6):
            clip = render_clip(seed, seed, 0, frames=12, stride=3, size=(384, 384), scene_kind="gradient")
            for frame, points, values in zip(clip.frames, clip.face, clip.expression, strict=True):
                low, high = points[points_of, :2].min(0), points[points_of, :2].max(0)
                left, top = np.floor(low - 1).astype(int)
                right, bottom = np.ceil(high + 2).astype(int)
                eye = frame[top:bottom, left:right].astype(int)
                white.append((eye.min(-1) > 235).sum() / (right - left) ** 2)
                opened.append(values[EXPRESSIONS.index(f"eye_open_{side}")])
        assert np.corrcoef(opened, white)[0, 1] > 0.7


def test_gaze_moves_the_iris() -> None:
    clip = render_clip(2, 5, 0, frames=60, size=(512, 512), scene_kind="gradient")
    places, gaze = [], []
    for frame, points, values in zip(clip.frames, clip.face, clip.expression, strict=True):
        if values[EXPRESSIONS.index("eye_open_left")] < 0.7:
            continue
        low, high = points[42:48, :2].min(0), points[42:48, :2].max(0)
        inner = frame[int(low[1]) + 3 : int(high[1]) - 2, int(low[0]) + 3 : int(high[0]) - 2].astype(int)
        columns = np.nonzero(inner.max(-1) < 60)[1]
        places.append((columns.mean() + 3) / (high[0] - low[0]))
        gaze.append(values[EXPRESSIONS.index("gaze_x")])
    assert len(places) > 20
    assert np.corrcoef(places, gaze)[0, 1] > 0.9


def test_face_patches_show_eyes_and_mouth() -> None:
    clip = render_clip(1, 3, 0, frames=4, stride=4, scene_kind="gradient")
    local, whole = face_patches(clip.frames, clip.face)
    for k in range(4):
        for group in (slice(36, 48), slice(48, 68)):
            x, y = np.rint(clip.face[k, group, :2]).astype(int).T
            assert (local[k][y, x] == clip.frames[k][y, x]).mean() > 0.9
        assert 0.02 < (local[k].max(-1) > 0).mean() < (whole[k].max(-1) > 0).mean() < 0.5


@pytest.mark.parametrize("kind", DYNAMIC_SCENES)
def test_the_dynamic_mask_covers_what_moves(kind: str) -> None:
    clip = render_clip(0, 0, 21, frames=40, kind="scene", scene_kind=kind)
    region = clip.dynamic[0]
    assert np.array_equal(clip.dynamic, np.repeat(region[None], 40, 0))
    moved = np.ptp(clip.frames.astype(int), axis=0).max(-1) > 12
    assert moved[region].mean() > 0.3
    assert (moved & ~region).sum() <= 0.002 * moved.sum()
    human = render_clip(0, 0, 21, frames=2, scene_kind=kind)
    assert np.array_equal(human.dynamic, region & ~human.mask)


@pytest.mark.parametrize("kind", STATIC_SCENES)
def test_static_scenes_stand_still(kind: str) -> None:
    clip = render_clip(0, 0, 21, frames=3, stride=7, kind="scene", scene_kind=kind)
    assert np.array_equal(clip.frames[0], clip.frames[2])
    assert not clip.dynamic.any()
    assert clip.frames[0].std() > 5


def test_secondary_pixels_are_part_of_the_figure_and_swing() -> None:
    bare = 0
    for seed in range(10):
        clip = render_clip(seed, seed, seed, frames=4, stride=4)
        assert not (clip.secondary & ~clip.mask).any()
        share = clip.secondary.sum() / clip.mask.sum()
        assert 0.02 < share < 0.75
        bare += (clip.secondary[0] == clip.secondary[3]).all()
    assert bare == 0


def test_hair_lags_behind_the_head() -> None:
    """A swinging tail is not glued to the head: seen from the head it moves, and it does so late."""
    from xdyna.puppets.world.identity import make_identity
    from xdyna.puppets.world.motion import make_motion
    from xdyna.puppets.world.secondary import hang
    from xdyna.puppets.world.skeleton import make_skeleton

    who = next(identity for identity in map(make_identity, range(200)) if identity.hair.style == "ponytail")
    step = 1 / 24
    times = np.arange(480) * step
    motion = make_motion(3, "sway", times)
    skeleton = make_skeleton(who.body, motion)
    still = np.zeros(len(times))
    tail = hang(who, motion, skeleton, wind=still, step=step)["tail"][:, 0]
    offset = (tail[:, -1] - tail[:, 0])[:, 0]
    push = -np.gradient(np.gradient(tail[:, 0, 0], step), step)
    push, offset = push - push.mean(), offset - offset.mean()
    lags = np.arange(-12, 13)
    matches = [np.corrcoef(push[20:-20], np.roll(offset, -lag)[20:-20])[0, 1] for lag in lags]
    assert max(matches) > 0.6
    assert lags[int(np.argmax(matches))] > 0
    lengths = np.linalg.norm(np.diff(tail, axis=1), axis=-1)
    np.testing.assert_allclose(lengths, who.hair.length / 3, atol=1e-12)


@pytest.mark.slow
def test_it_is_fast_enough_to_train_on() -> None:
    cv2.setNumThreads(1)
    start = time.process_time()
    for seed in range(24):
        render_clip(seed, seed, seed)
    rate = 24 * 16 / (time.process_time() - start)
    assert rate >= 100, f"{rate:.0f} frames/s of processor time"
