import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from xdyna.puppets.world import (
    DYNAMIC_SCENES,
    EXPRESSIONS,
    FPS,
    MOTION_KINDS,
    SPLITS,
    STATIC_SCENES,
    PuppetClip,
    render_clip,
)

ARRAYS = ("frames", "body", "hands", "face", "mask", "dynamic", "secondary", "expression")


def same(first: PuppetClip, second: PuppetClip, rows: slice = slice(None)) -> bool:
    return all(np.array_equal(getattr(first, name)[rows], getattr(second, name)) for name in ARRAYS)


def angles(clip: PuppetClip) -> np.ndarray:
    """Directions of upper arms, forearms, thighs and shins, rad."""
    bones = np.array([(2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13)])
    delta = clip.body[:, bones[:, 1], :2] - clip.body[:, bones[:, 0], :2]
    return np.arctan2(delta[..., 1], delta[..., 0])


def test_shapes_types_and_ranges() -> None:
    clip = render_clip(1, 2, 3, frames=3, size=(96, 80))
    shapes = {name: getattr(clip, name).shape for name in ARRAYS}
    assert shapes == {
        "frames": (3, 96, 80, 3), "body": (3, 18, 3), "hands": (3, 2, 21, 3), "face": (3, 68, 3),
        "mask": (3, 96, 80), "dynamic": (3, 96, 80), "secondary": (3, 96, 80), "expression": (3, len(EXPRESSIONS)),
    }  # fmt: skip
    types = [getattr(clip, name).dtype for name in ARRAYS]
    assert types == [np.uint8, *[np.float32] * 3, *[bool] * 3, np.float32]
    assert np.abs(clip.expression).max() <= 1
    opening = clip.expression[:, [EXPRESSIONS.index(n) for n in ("eye_open_left", "eye_open_right", "mouth_open")]]
    assert opening.min() >= 0
    track = clip.track()
    assert len(track) == 3
    assert track.size == (96, 80)
    assert track.found.all()


@pytest.mark.parametrize("seed", range(8))
def test_equal_seeds_give_equal_bytes(seed: int) -> None:
    assert same(render_clip(seed, seed, seed, frames=3), render_clip(seed, seed, seed, frames=3))


@pytest.mark.parametrize("kind", [*STATIC_SCENES, *DYNAMIC_SCENES])
def test_overlapping_clips_agree(kind: str) -> None:
    seed = 40 + len(kind)
    whole = render_clip(seed, seed, seed, frames=11, scene_kind=kind)
    assert same(whole, render_clip(seed, seed, seed, frames=7, start=4, scene_kind=kind), slice(4, 11))
    strided = render_clip(seed, seed, seed, frames=3, start=1, stride=4, scene_kind=kind)
    assert same(whole, strided, slice(1, 10, 4))
    assert strided.fps == FPS / 4


@pytest.mark.parametrize("kind", MOTION_KINDS)
def test_a_motion_keeps_its_angles_on_every_body(kind: str) -> None:
    clips = [render_clip(who, 5, 0, frames=6, stride=3, motion_kind=kind, size=(256, 256)) for who in (3, 4)]
    apart = angles(clips[0]) - angles(clips[1])
    assert np.abs(np.angle(np.exp(1j * apart))).max() < 1e-4
    assert np.array_equal(clips[0].expression, clips[1].expression)
    lengths = [np.linalg.norm(c.body[0, 2, :2] - c.body[0, 3, :2]) for c in clips]
    assert abs(lengths[0] - lengths[1]) > 0.5, "bodies keep their own lengths"


def test_arms_move_within_a_clip() -> None:
    for seed in range(12):
        clip = render_clip(seed, seed, seed)
        travel = np.ptp(clip.body[:, [4, 7], :2], axis=0).max()
        assert travel > 6, f"motion {seed} ({clip.motion_kind}) moves its wrists by {travel:.1f} px only"


def test_scene_and_motion_do_not_depend_on_the_identity() -> None:
    scenes = [render_clip(who, 7, 9, frames=2, kind="scene") for who in (0, 1)]
    assert same(*scenes)
    assert not same(render_clip(0, 7, 9, frames=2), render_clip(1, 7, 9, frames=2))
    assert not np.array_equal(render_clip(0, 7, 9, frames=2).body, render_clip(0, 8, 9, frames=2).body)


def test_another_identity_takes_the_place_in_the_same_pose() -> None:
    own, other = (render_clip(10, 6, 2, frames=4, size=(256, 256), face_identity=face) for face in (None, 33))
    assert np.array_equal(own.body[:, 1:14], other.body[:, 1:14])
    assert np.array_equal(own.hands, other.hands)
    assert np.array_equal(own.expression, other.expression)
    assert not np.array_equal(own.face, other.face)
    changed = (own.frames != other.frames).any(-1)
    around = np.stack([cv2.dilate(m.astype(np.uint8), np.ones((5, 5))) for m in own.mask | other.mask]).astype(bool)
    assert not changed[~around].any(), "the scene stays"
    for k in range(4):
        nose, chest = own.body[k, 0, :2], own.body[k, [1, 8, 11], :2].mean(0)
        for x, y in (nose, chest):  # face and clothes are another's
            assert changed[k, int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9].mean() > 0.5
    assert same(own, render_clip(10, 6, 2, frames=4, size=(256, 256), face_identity=10))


def test_a_scene_alone_has_no_figure() -> None:
    clip = render_clip(1, 2, 3, frames=2, kind="scene", scene_kind="sea")
    assert not clip.mask.any()
    assert not clip.secondary.any()
    assert max(np.abs(getattr(clip, name)).max() for name in ("body", "hands", "face", "expression")) == 0
    assert clip.dynamic.any()
    assert not clip.track().found.any()
    assert clip.motion_kind == "none"


def test_splits_never_overlap() -> None:
    ranges = list(SPLITS.values())
    assert set(SPLITS) == {"train", "validation", "test"}
    assert min(len(seeds) for seeds in ranges) >= 10_000
    ordered = sorted(ranges, key=lambda seeds: seeds.start)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ordered))
    assert all(seeds.step == 1 for seeds in ranges)


def test_about_half_of_the_seeds_have_dynamic_scenes() -> None:
    kinds = [render_clip(0, 0, seed, frames=1, kind="scene", size=(64, 64)).scene_kind for seed in range(120)]
    assert 0.35 < np.mean([kind in DYNAMIC_SCENES for kind in kinds]) < 0.65
    assert set(kinds) == {*STATIC_SCENES, *DYNAMIC_SCENES}


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (512, 512), (224, 128), (96, 192)])
def test_the_figure_is_large_and_inside(size: tuple[int, int]) -> None:
    for seed in range(3 if size[0] > 200 else 12):
        clip = render_clip(seed, seed, seed, frames=3, start=seed, stride=5, size=size)
        edges = clip.mask[:, 0].any(), clip.mask[:, -1].any(), clip.mask[:, :, 0].any(), clip.mask[:, :, -1].any()
        assert not any(edges), f"seed {seed} leaves the image (top, bottom, left, right): {edges}"
        tall = np.ptp(np.flatnonzero(clip.mask.any(axis=(0, 2)))) / min(size[0], 1.12 * size[1])
        assert 0.74 < tall < 1.0
        assert (clip.body[..., 2] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": -1}, "identity is -1"),
        ({"motion": 1.5}, "motion is 1.5"),
        ({"scene": "7"}, "scene is '7'"),
        ({"frames": 0}, "frames is 0"),
        ({"start": -2}, "start is -2"),
        ({"stride": 0}, "stride is 0"),
        ({"face_identity": -3}, "face_identity is -3"),
        ({"size": (32, 128)}, "at least 64"),
        ({"size": 128}, "expected .height, width."),
        ({"size": (128.5, 128)}, "expected .height, width."),
        ({"size": (128, 128, 3)}, "expected .height, width."),
        ({"kind": "animal"}, "kind is 'animal'; expected one of human, scene"),
        ({"scene_kind": "lava"}, "scene_kind is 'lava'.*waterfall"),
        ({"motion_kind": "swim"}, "motion_kind is 'swim'.*dance"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"identity": 1, "motion": 1, "scene": 1, **change}
    with pytest.raises(ValueError, match=message):
        render_clip(**arguments)  # type: ignore[arg-type]


def test_numpy_numbers_are_seeds_too() -> None:
    seeds = np.array([3, 4, 5])
    assert same(render_clip(*seeds, frames=np.int64(1)), render_clip(3, 4, 5, frames=1))


def test_a_clip_is_frozen() -> None:
    clip = render_clip(0, 0, 0, frames=1, size=(64, 64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.kind = "scene"  # type: ignore[misc]
