from pathlib import Path

import numpy as np
import pytest

from xdyna.perception import PerceptionError, face_boxes, face_patches
from xdyna.perception.face_patch import face_box, global_patch, local_patch, region_centers


def make_face(rng: np.random.Generator, *, center: tuple[float, float], radius: float) -> np.ndarray:
    angle, length = rng.uniform(0, 2 * np.pi, 68), radius * np.sqrt(rng.uniform(0, 1, 68))
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * length[:, None] + center).astype(np.float32)


def brute_force(frame: np.ndarray, points: np.ndarray, previous: tuple | None):
    """The rule pixel by pixel, in plain Python. Returns local, global, box."""
    height, width = frame.shape[:2]
    xs, ys = [float(p[0]) for p in points], [float(p[1]) for p in points]
    length = max(max(xs) - min(xs), max(ys) - min(ys))
    x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    left, top, right, bottom = (
        int(x - 1.35 * length),
        int(y - 1.25 * length),
        int(x + 1.35 * length),
        int(y + 1.45 * length),
    )
    box = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    if previous and previous[0] <= box[0] and previous[1] <= box[1] and box[2] <= previous[2] and box[3] <= previous[3]:
        box = previous
    half_w, half_h = int((box[2] - box[0]) / 512 * 64), int((box[3] - box[1]) / 512 * 64)
    spots = []
    for indices in ([43, 44, 45, 46, 47], [37, 38, 39, 40, 41], list(range(49, 68))):
        spots.append(
            (round(sum(xs[i] for i in indices) / len(indices)), round(sum(ys[i] for i in indices) / len(indices)))
        )
    local, whole = np.zeros_like(frame), np.zeros_like(frame)
    for row in range(height):
        for column in range(width):
            if box[0] <= column < box[2] and box[1] <= row < box[3]:
                whole[row, column] = frame[row, column]
            if any(a - half_w <= column < a + half_w and b - half_h <= row < b + half_h for a, b in spots):
                local[row, column] = frame[row, column]
    return local, whole, box


def test_golden(parity_dir: Path):
    with np.load(parity_dir / "golden.npz") as golden:
        case = {key.split("/")[1]: golden[key] for key in golden.files if key.startswith("face_patch/")}
    for k, (frame, points) in enumerate(zip(case["frames"], case["landmarks"], strict=True)):
        box = face_box(points, size=frame.shape[:2])
        assert box == tuple(case["bbox"][k])
        np.testing.assert_array_equal(region_centers(points), case["centers"][k])
        np.testing.assert_array_equal(global_patch(frame, box), case["global_"][k])
        np.testing.assert_array_equal(local_patch(frame, points, box), case["local"][k])
        local, whole = face_patches(frame[None], points[None])  # each frame alone, no previous box
        np.testing.assert_array_equal(local[0], case["local"][k])
        np.testing.assert_array_equal(whole[0], case["global_"][k])


def test_against_brute_force_with_carried_boxes():
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 255, (24, 72, 56, 3), dtype=np.uint8)
    # Every third face moves away, the others shrink within the box before; some hang over the edges.
    faces, center = [], (20.0, 20.0)
    for k in range(len(frames)):
        center = tuple(rng.uniform([0, 0], [56, 72])) if k % 3 == 0 else center
        faces.append(make_face(rng, center=center, radius=8 - 3 * (k % 3)))
    faces = np.stack(faces)
    local, whole = face_patches(frames, faces)
    boxes = face_boxes(faces, size=(72, 56))
    previous, kept = None, 0
    for k, frame in enumerate(frames):
        want_local, want_whole, box = brute_force(frame, faces[k], previous)
        kept += box == previous
        assert boxes[k] == box
        np.testing.assert_array_equal(local[k], want_local)
        np.testing.assert_array_equal(whole[k], want_whole)
        previous = box
    assert 2 <= kept <= 22, "the case must show both outcomes of the rule"


def test_gaps_carry_box_and_landmarks():
    rng = np.random.default_rng(3)
    frames = rng.integers(1, 255, (6, 60, 60, 3), dtype=np.uint8)
    faces = np.zeros((6, 68, 3), np.float32)
    for row, center in ((1, (20, 20)), (4, (42, 40))):
        faces[row] = np.column_stack([make_face(rng, center=center, radius=8), np.ones(68)])
    boxes = face_boxes(faces, size=(60, 60))
    assert boxes[0] == boxes[1] == boxes[2] == boxes[3], "before the first face: its box; after it: carried"
    assert boxes[4] == boxes[5] != boxes[3]
    local, whole = face_patches(frames, faces)
    source = [1, 1, 1, 1, 4, 4]
    for row in range(6):
        np.testing.assert_array_equal(local[row], local_patch(frames[row], faces[source[row], :, :2], boxes[row]))
        np.testing.assert_array_equal(whole[row], global_patch(frames[row], boxes[row]))
    with_nan = np.where(faces[..., 2:] > 0, faces[..., :2], np.nan)
    np.testing.assert_array_equal(face_patches(frames, with_nan)[0], local)


def test_unsure_faces_count_as_missing():
    rng = np.random.default_rng(3)
    faces = np.stack([np.column_stack([make_face(rng, center=(30, 30), radius=8), np.full(68, c)]) for c in (0.9, 0.2)])
    faces[1, :, :2] += 10
    boxes = face_boxes(faces, size=(80, 80))
    assert boxes[0] == boxes[1]
    faces[1, :, 2] = 0.4
    assert len(set(face_boxes(faces, size=(80, 80)))) == 2


def test_a_face_beyond_the_image_gives_black():
    rng = np.random.default_rng(0)
    frames = np.full((1, 40, 40, 3), 9, np.uint8)
    for center in ((-200.0, 20.0), (20.0, 300.0), (500.0, -500.0)):
        local, whole = face_patches(frames, make_face(rng, center=center, radius=10)[None])
        assert not local.any()
        assert not whole.any()


def test_errors():
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(PerceptionError, match="no face was found in any of 2 frames"):
        face_patches(frames, np.zeros((2, 68, 3)))
    with pytest.raises(PerceptionError, match="no face"):
        face_patches(frames, np.full((2, 68, 2), np.nan))
    with pytest.raises(PerceptionError, match="2 frames but landmarks of 3"):
        face_patches(frames, np.ones((3, 68, 2)))
    with pytest.raises(PerceptionError, match=r"expected \(T, 68, 2\)"):
        face_patches(frames, np.ones((2, 5, 2)))
    with pytest.raises(PerceptionError, match="uint8"):
        face_patches(frames.astype(np.float32), np.ones((2, 68, 2)))
