"""Cutting out faces, and the reader as a network and as files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from xdyna.puppets.expression import READINGS, SIDE, ExpressionReader, cut_face


def landmarks(right: tuple[float, float], left: tuple[float, float]) -> np.ndarray:
    """Landmarks of which only the ends of the jaw line are of use."""
    points = np.random.default_rng(0).uniform(0, 50, (68, 3))
    points[0, :2], points[16, :2] = right, left
    return points


def test_cut_follows_the_face() -> None:
    """A face that is moved, turned and enlarged gives the same cut."""
    size, rng = 96, np.random.default_rng(1)
    face = cv2.GaussianBlur(rng.uniform(0, 255, (size, size, 3)), (0, 0), 4)
    face = np.clip((face - 127) * 4 + 127, 0, 255).astype(np.uint8)
    right, left = np.array([30.0, 40.0]), np.array([62.0, 40.0])
    expected = cut_face(face, landmarks(tuple(right), tuple(left))).astype(float)
    for angle, scale, shift in ((0, 1.0, (7.3, 3.8)), (25, 1.0, (20, 10)), (-15, 2.4, (30, 40))):
        matrix = cv2.getRotationMatrix2D((46, 46), angle, scale)
        matrix[:, 2] += shift
        moved = cv2.warpAffine(face, matrix, (260, 260), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        ends = [tuple(matrix @ [*point, 1]) for point in (right, left)]
        assert np.abs(cut_face(moved, landmarks(*ends)) - expected).mean() < 3
    other = landmarks((33.0, 40.0), (65.0, 40.0))
    assert np.abs(cut_face(face, other) - expected).mean() > 8


def test_cut_is_upright_and_centred() -> None:
    """The cut of an image that tells its own coordinates: width, place and orientation in closed form."""
    y, x = np.indices((100, 100))
    frame = np.stack([x * 2, y * 2, x * 0], -1).astype(np.uint8)
    cut = cut_face(frame, landmarks((40.0, 50.0), (70.0, 50.0))).astype(float) / 2
    step = 30 * 1.15 / SIDE
    across = 55 + (np.arange(SIDE) - (SIDE - 1) / 2) * step
    down = 50 + 0.12 * 30 + (np.arange(SIDE) - (SIDE - 1) / 2) * step
    assert np.abs(cut[..., 0] - across).max() < 0.6
    assert np.abs(cut[..., 1] - down[:, None]).max() < 0.6


def test_large_faces_are_averaged() -> None:
    """A fine checkerboard becomes grey instead of a random pattern."""
    frame = np.repeat((np.indices((600, 600)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    cut = cut_face(frame, landmarks((150.0, 200.0), (450.0, 200.0)))
    assert np.abs(cut.astype(float) - 127.5).max() < 30


@pytest.mark.parametrize(
    ("frame", "points", "message"),
    [
        (np.zeros((50, 50, 3)), landmarks((10, 10), (20, 10)), "uint8"),
        (np.zeros((50, 50, 3), np.uint8), np.zeros((67, 3)), "68"),
        (np.zeros((50, 50, 3), np.uint8), np.zeros((68, 3)), "px wide"),
    ],
)
def test_faces_that_cannot_be_cut(frame: np.ndarray, points: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_face(frame, points)


def test_reader_ignores_brightness_and_stays_small() -> None:
    torch.manual_seed(0)
    reader = ExpressionReader().eval()
    assert sum(parameter.numel() for parameter in reader.parameters()) <= 50_000
    faces = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4), size=SIDE)
    out = reader(faces)
    assert out.shape == (4, len(READINGS))
    between_faces = (out[0] - out[1]).abs().max()
    assert (reader(faces * 0.6 + 0.3) - out).abs().max() < 0.2 * between_faces


def test_reader_survives_its_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = ExpressionReader(channels=(4, 8, 8), hidden=8).eval()
    reader.save(tmp_path / "reader", facts={"seed": 0})
    again = ExpressionReader.load(tmp_path / "reader")
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 60, 3), dtype=np.uint8)
    points = np.stack([landmarks((10, 20), (40, 20))] * 3)
    readings = again.read(frames, points)
    assert readings.shape == (3, 3)
    assert readings.dtype == np.float64
    assert (readings == reader.read(frames, points)).all()
    assert readings.min() >= 0
    assert readings.max() <= 1


@pytest.mark.parametrize("damage", ["no folder", "no weights", "truncated", "other sizes", "other readings"])
def test_damaged_readers_are_refused(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    if damage != "no folder":
        ExpressionReader(channels=(4, 8, 8), hidden=8).save(folder, facts={})
    weights, config = folder / "reader.safetensors", folder / "config.json"
    if damage == "no weights":
        weights.unlink()
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    if damage.startswith("other"):
        content = json.loads(config.read_text())
        changed = {"sizes": {"channels": [4, 8, 16], "hidden": 8}} if damage == "other sizes" else {"readings": ["a"]}
        config.write_text(json.dumps(content | changed))
    with pytest.raises(ValueError, match="train"):
        ExpressionReader.load(folder)
