"""The list of held-out clips, and what it says as inputs and truth."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from xdyna.perception.draw import draw_pose
from xdyna.perception.face_patch import face_patches
from xdyna.puppets.heldout import (
    DISTANCE,
    HELD_OUT,
    VIDEO_FRAMES,
    HeldOut,
    cross_driven,
    furthest_pose,
    load_held_out,
    self_driven,
    true_readings,
)
from xdyna.puppets.world import DYNAMIC_SCENES, EXPRESSIONS, MOTION_KINDS, SPLITS, STATIC_SCENES, render_clip

SIZE, FRAMES = (64, 64), 3


def test_list_is_held_out_and_mixed() -> None:
    entries = load_held_out()
    assert len(entries) == 64
    seeds = [seed for entry in entries for seed in (entry.identity, entry.motion, entry.scene, entry.other)]
    assert len(set(seeds)) == 4 * 64
    assert all(entry.start + 16 <= VIDEO_FRAMES for entry in entries)
    assert all(seed in SPLITS["test"] for seed in seeds)
    clips = [render_clip(e.identity, e.motion, e.scene, frames=1, size=SIZE) for e in entries]
    for some in (clips[:16], clips):
        kinds = [clip.scene_kind for clip in some]
        assert sum(kind in DYNAMIC_SCENES for kind in kinds) * 2 == len(some)
        assert set(kinds) == {*STATIC_SCENES, *DYNAMIC_SCENES}
        assert {clip.motion_kind for clip in some} == set(MOTION_KINDS)


def test_references_follow_the_rule() -> None:
    for entry in load_held_out()[::32]:
        last = entry.start + 15
        video = render_clip(entry.identity, entry.motion, entry.scene, frames=VIDEO_FRAMES, size=SIZE)
        reference = entry.reference(frames=16, size=SIZE)
        number = furthest_pose(video.body, start=entry.start, frames=16)
        assert max(entry.start - number, number - last) >= DISTANCE
        assert (reference.frames[0] == video.frames[number]).all()
        other = entry.reference(frames=16, size=SIZE, other=True)
        assert other.start == reference.start == number
        assert (other.frames != reference.frames).any()


def test_furthest_pose_by_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    body = np.concatenate([rng.uniform(0, 100, (30, 18, 2)), rng.uniform(size=(30, 18, 1)) < 0.8], axis=2)
    distances = {}
    for k in range(30):
        if 8 - k < DISTANCE and k - 11 < DISTANCE:
            continue
        pairs = [
            np.hypot(*(body[k, j, :2] - body[c, j, :2]))
            for c in range(8, 12)
            for j in range(18)
            if body[k, j, 2] and body[c, j, 2]
        ]
        distances[k] = np.mean(pairs)
    assert furthest_pose(body, start=8, frames=4) == max(distances, key=distances.__getitem__)
    with pytest.raises(ValueError, match="away"):
        furthest_pose(body[:20], start=8, frames=4)


@pytest.mark.parametrize("damage", ["train seed", "missing", "text", "empty", "broken", "none"])
def test_other_lists_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    content = yaml.safe_load(HELD_OUT.read_text())
    if damage == "train seed":
        content["clips"][3]["motion"] = 5
    if damage == "missing":
        del content["clips"][3]["start"]
    if damage == "text":
        content["clips"][3]["start"] = "5"
    if damage == "empty":
        content = []
    if damage != "none":
        path.write_text("clips: [" if damage == "broken" else yaml.safe_dump(content))
    with pytest.raises(ValueError, match="list"):
        load_held_out(path)


ENTRY = HeldOut(identity=2_000_001, motion=2_000_002, scene=2_000_003, other=2_000_004, start=2)


def test_self_driven() -> None:
    task = self_driven(ENTRY, frames=FRAMES, size=SIZE)
    clip = render_clip(2_000_001, 2_000_002, 2_000_003, frames=VIDEO_FRAMES, size=SIZE)
    assert (task.reference == clip.frames[furthest_pose(clip.body, start=2, frames=FRAMES)]).all()
    assert (task.truth.frames == clip.frames[2 : 2 + FRAMES]).all()
    for k in range(FRAMES):
        assert (task.pose[k] == draw_pose(clip.body[2 + k], clip.hands[2 + k], size=SIZE)).all()
    patches = face_patches(clip.frames[2 : 2 + FRAMES], clip.face[2 : 2 + FRAMES])
    assert (task.face == np.concatenate(patches, axis=-1)).all()
    assert task.alignment is None
    assert task.pose.any()
    assert task.face.any()


def test_cross_driven_by_exact_keypoints() -> None:
    task = cross_driven(ENTRY, frames=FRAMES, size=SIZE, aligned=False)
    other = render_clip(2_000_004, 2_000_002, 2_000_003, frames=VIDEO_FRAMES, size=SIZE)
    assert any((task.reference == frame).all() for frame in other.frames[2 + FRAMES + DISTANCE - 1 :])
    assert (task.truth.frames == other.frames[2 : 2 + FRAMES]).all()
    assert (task.pose[1] == draw_pose(other.body[3], other.hands[3], size=SIZE)).all()
    worn = render_clip(2_000_004, 2_000_002, 2_000_003, frames=FRAMES, start=2, size=SIZE, face_identity=2_000_001)
    assert (task.face == np.concatenate(face_patches(worn.frames, worn.face), axis=-1)).all()
    assert not (task.face == np.concatenate(face_patches(task.truth.frames, task.truth.face), axis=-1)).all()


def test_cross_driven_by_aligned_keypoints() -> None:
    size = (128, 128)
    exact = cross_driven(ENTRY, frames=FRAMES, size=size, aligned=False)
    task = cross_driven(ENTRY, frames=FRAMES, size=size, aligned=True)
    assert (task.truth.frames == exact.truth.frames).all()
    assert (task.reference == exact.reference).all()
    assert task.alignment is not None
    assert task.alignment.usable
    driver = self_driven(ENTRY, frames=FRAMES, size=size).truth
    moved = np.stack([task.alignment.image(frame) for frame in driver.frames])
    inside = task.face[..., 3:] > 0
    assert inside.any()
    assert (task.face[..., 3:][inside] == moved[inside]).all()
    for k in range(FRAMES):
        body = driver.body[k].copy()
        body[:, :2] = body[:, :2] * task.alignment.scale + task.alignment.offset
        hands = driver.hands[k].copy()
        hands[..., :2] = hands[..., :2] * task.alignment.scale + task.alignment.offset
        assert (task.pose[k] != draw_pose(body, hands, size=size)).mean() < 0.001  # rounding to float32


def test_true_readings() -> None:
    clip = render_clip(1, 2, 3, frames=4, size=SIZE)
    values = dict(zip(EXPRESSIONS, clip.expression.T, strict=True))
    expected = [values["eye_open_left"], values["eye_open_right"], values["mouth_open"]]
    assert (true_readings(clip) == np.stack(expected, axis=1)).all()
