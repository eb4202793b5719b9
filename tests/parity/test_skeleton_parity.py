"""Our skeletons beside the official pose maps of the same frames.

The official joints are found by their colours in the official pose videos (discs of radius 4 px at full brightness;
limbs are 60 % bright). With XDYNA_SHOWS_DIR set, a side-by-side image per video is written there.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from xdyna.evaluation.keypoints import DRAWN, drawn_joints
from xdyna.media import probe, read_frames, write_png
from xdyna.media.sheet import contact_sheet
from xdyna.perception import draw_pose, track_person
from xdyna.perception.topology import BODY_JOINTS

pytest.importorskip("mediapipe", reason="needs the perception extra")

FRAMES = 60
TARGET = 0.08
_LEFT_HIP, _LEFT_KNEE, _LEFT_ANKLE = 11, 12, 13


def test_official_joints_are_found_by_colour():
    """The measuring tool itself: joints drawn by us are found where they were drawn, hands notwithstanding."""
    rng = np.random.default_rng(0)
    body = np.ones((18, 3), np.float32)
    places = np.stack(np.mgrid[60:460:80, 60:860:160], axis=-1).reshape(-1, 2)
    body[:, :2] = rng.permutation(places)[:18]
    body[_LEFT_KNEE, :2] = (body[_LEFT_HIP, :2] + body[_LEFT_ANKLE, :2]) / 2 + 15
    hands = np.ones((2, 21, 3), np.float32)
    hands[..., :2] = body[[3, 6], None, :2] + rng.uniform(20, 50, (2, 21, 2))
    found = drawn_joints(draw_pose(body, hands, size=(896, 512)))
    shown = found[:, 2] > 0.5
    assert shown[_LEFT_KNEE]
    assert shown.sum() >= DRAWN - 2
    np.testing.assert_allclose(found[shown, :2], np.trunc(body[:DRAWN][shown, :2]), atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dance_1", "dance_2"])
def test_joints_match_the_official_ones(name: str, shared_dir: Path, tmp_path: Path):
    video, official_video = shared_dir / "data" / f"{name}.mp4", shared_dir / "data" / f"{name}_pose.mp4"
    rows = np.linspace(0, probe(video).frame_count - 1, FRAMES).round().astype(int)
    track = track_person(video, frame_indices=rows, cache_dir=tmp_path)
    official_images = list(read_frames(official_video, rows))
    official = np.stack([drawn_joints(image) for image in official_images])
    hips = (official[:, 8, :2] + official[:, _LEFT_HIP, :2]) / 2
    torso_shown = (official[:, [1, 8, _LEFT_HIP], 2] > 0.5).all(axis=1)
    torso = np.median(np.linalg.norm(official[torso_shown, 1, :2] - hips[torso_shown], axis=1))

    shown = official[..., 2] > 0.5
    drawn = track.body[:, :DRAWN, 2] >= 0.3
    distance = np.linalg.norm(track.body[:, :DRAWN, :2] - official[..., :2], axis=2) / torso
    distance[~(shown & drawn)] = np.nan
    print(f"\n{name}: torso {torso:.0f} px, {np.isfinite(distance).sum()} joints compared, {track.summary}")
    print(f"  official joints shown {shown.sum()}, of these not drawn by us {(shown & ~drawn).sum()}")
    mean, median, p95 = np.nanmean(distance), np.nanmedian(distance), np.nanpercentile(distance, 95)
    print(f"  all: mean {mean:.4f}, median {median:.4f}, p95 {p95:.3f}")
    for joint, column in enumerate(distance.T):
        count = np.isfinite(column).sum()
        print(f"  {BODY_JOINTS[joint]:15s} mean {np.nanmean(column):.3f}  median {np.nanmedian(column):.3f}  n {count}")
    if folder := os.environ.get("XDYNA_SHOWS_DIR"):
        write_side_by_side(Path(folder) / f"skeleton_{name}.png", video=video, official=official_images, track=track)

    assert track.found.all()
    assert np.isfinite(distance).sum() > 0.85 * distance.size
    assert (shown & ~drawn).sum() <= 0.03 * shown.sum()
    assert np.nanmean(distance) <= TARGET


def write_side_by_side(path: Path, *, video: Path, official: list[np.ndarray], track) -> None:
    """Six frames: driving image, official pose map, ours."""
    chosen = np.linspace(0, len(track) - 2, 6).round().astype(int)
    driving = list(read_frames(video, track.frame_index[chosen]))
    ours = [draw_pose(track.body[row], track.hands[row], size=track.size) for row in chosen]
    rows = {"driving": driving, "official": [official[row] for row in chosen], "ours": ours}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, contact_sheet(rows, columns=6, cell_height=420), overwrite=True)
