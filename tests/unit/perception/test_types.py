import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xdyna.core.errors import FileError
from xdyna.media.image import CropResize
from xdyna.perception import PerceptionError, PoseTrack
from xdyna.perception.types import mark_face, mark_outside


def assert_same(first: PoseTrack, second: PoseTrack) -> None:
    for name in ("body", "hands", "face", "times", "frame_index"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert getattr(first, name).dtype == getattr(second, name).dtype
    assert (first.size, first.source) == (second.size, second.source)


def test_save_load_round_trip(tmp_path: Path, make_track):
    track = make_track()
    track.save(tmp_path / "keys.npz")
    assert_same(track, PoseTrack.load(tmp_path / "keys.npz"))
    with pytest.raises(FileError, match="exists"):
        track.save(tmp_path / "keys.npz")
    make_track(3).save(tmp_path / "keys.npz", overwrite=True)
    assert len(PoseTrack.load(tmp_path / "keys.npz")) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.npz"]


def test_a_track_with_nobody_is_kept(tmp_path: Path, make_track):
    track = make_track(3)
    empty = replace(
        track,
        body=np.zeros_like(track.body),
        hands=np.zeros_like(track.hands),
        face=np.zeros_like(track.face),
        times=np.zeros(3),
    )
    empty.save(tmp_path / "nobody.npz")
    assert_same(empty, PoseTrack.load(tmp_path / "nobody.npz"))
    assert not PoseTrack.load(tmp_path / "nobody.npz").found.any()


def test_found_needs_one_point(make_track):
    track = make_track(3)
    empty = replace(track, body=np.zeros_like(track.body), face=np.zeros_like(track.face))
    assert not empty.found.any()
    body = empty.body.copy()
    body[1, 4] = [5, 5, 0.2]
    assert replace(empty, body=body).found.tolist() == [False, True, False]


def test_transform_moves_points_like_pixels(make_track):
    """A bright pixel in the image lands where its keypoint lands; missing points stay missing."""
    track = make_track(1, size=(120, 80))
    body = np.zeros((1, 18, 3), np.float32)
    body[0, 0] = [41, 63, 0.9]
    crop = CropResize(box=(20, 30, 40, 60), size=(120, 80))
    moved = replace(track, body=body).transform(crop)
    picture = np.zeros((120, 80), np.float32)
    picture[63, 41] = 1
    result = crop.image(picture, interpolation="bilinear")
    ys, xs = np.indices(result.shape)
    center = [(xs * result).sum() / result.sum(), (ys * result).sum() / result.sum()]
    np.testing.assert_allclose(moved.body[0, 0], [*center, 0.9], atol=1e-4)
    np.testing.assert_array_equal(moved.body[0, 1:], 0)
    assert moved.size == (120, 80)


def test_points_outside_a_crop_keep_their_confidence(make_track):
    body = np.zeros((1, 18, 3), np.float32)
    body[0, 0] = [5, 5, 0.7]
    moved = replace(make_track(1), body=body).transform(CropResize(box=(20, 30, 40, 60), size=(60, 40)))
    np.testing.assert_allclose(moved.body[0, 0], [-15, -25, 0.7], atol=1e-5)


def test_select(make_track):
    track = make_track(6)
    rows = [0, 2, 2, 5]
    assert_same(track.select(rows), track.select(np.array(rows)))
    np.testing.assert_array_equal(track.select(rows).frame_index, track.frame_index[rows])
    assert len(track.select(slice(1, 4))) == 3
    assert len(track.select(track.frame_index > 4)) == 3
    with pytest.raises(PerceptionError, match="6 frames"):
        track.select([6])
    with pytest.raises(PerceptionError, match=r"rows \[\] do not fit"):
        track.select([])
    with pytest.raises(PerceptionError, match="at least one frame"):
        track.select(slice(0, 0))
    with pytest.raises(PerceptionError, match="ascending"):
        track.select([3, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": np.zeros((5, 17, 3))}, r"body has shape \(5, 17, 3\); expected \(5, 18, 3\)"),
        ({"hands": np.zeros((4, 2, 21, 3))}, "hands has shape"),
        ({"face": np.full((5, 68, 3), np.nan)}, "face holds NaN"),
        ({"body": np.full((5, 18, 3), 2.0)}, "confidences from 2 to 2"),
        ({"body": np.full((5, 18, 3), "x")}, "expected float32"),
        ({"body": np.concatenate([np.full((5, 18, 2), 1e9), np.ones((5, 18, 1))], -1)}, "below 1e6"),
        ({"times": np.array([0, 1, 0.5, 2, 3])}, "times must be"),
        ({"times": np.array([0, 1, 2, 3, np.inf])}, "times must be"),
        ({"frame_index": np.arange(4)}, "frame_index has 4 entries"),
        ({"frame_index": -np.arange(5)}, "frame_index must be"),
        ({"size": (0, 5)}, "size is"),
        ({"size": (5,)}, "size is"),
    ],
)
def test_refused_values(change: dict, message: str, make_track):
    with pytest.raises(PerceptionError, match=message):
        replace(make_track(5), **change)


def test_bad_files(tmp_path: Path, make_track):
    track = make_track()
    track.save(tmp_path / "good.npz")
    with pytest.raises(PerceptionError, match="not a file"):
        PoseTrack.load(tmp_path / "none.npz")
    with pytest.raises(PerceptionError, match="not a file"):
        PoseTrack.load(tmp_path)
    content = dict(np.load(tmp_path / "good.npz"))
    np.savez(tmp_path / "lacks.npz", **{key: content[key] for key in content if key != "hands"})
    with pytest.raises(PerceptionError, match=r"lack \['hands'\]"):
        PoseTrack.load(tmp_path / "lacks.npz")
    np.savez(tmp_path / "old.npz", **{**content, "format": np.array("other")})
    with pytest.raises(PerceptionError, match="format 'other'"):
        PoseTrack.load(tmp_path / "old.npz")
    np.savez(tmp_path / "shape.npz", **{**content, "face": content["face"][:, :5]})
    with pytest.raises(PerceptionError, match="face has shape"):
        PoseTrack.load(tmp_path / "shape.npz")
    np.save(tmp_path / "array.npy", content["body"])
    with pytest.raises(PerceptionError, match=r"no \.npz"):
        PoseTrack.load(tmp_path / "array.npy")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_never_opened(tmp_path: Path, make_track):
    track = make_track()
    track.save(tmp_path / "good.npz")
    content = dict(np.load(tmp_path / "good.npz"))
    trap = np.empty((1,), dtype=object)
    trap[0] = Trap(tmp_path / "trapped")
    np.savez(tmp_path / "objects.npz", **{**content, "source": trap})
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(trap))
    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(PerceptionError, match=r"damaged or no \.npz"):
            PoseTrack.load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_fuzzed_files_load_equal_or_are_refused(tmp_path: Path, make_track):
    """Cut and flipped bytes anywhere: the right values, or one clear error; never another exception."""
    track = make_track(2)
    track.save(tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for trial in range(400):
        damaged = bytearray(good)
        if trial % 4 == 0:
            damaged = damaged[: rng.integers(0, len(good))]
        else:
            for place in rng.integers(0, len(good), rng.integers(1, 6)):
                damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            loaded = PoseTrack.load(tmp_path / "bad.npz")
        except PerceptionError as error:
            messages.append(str(error))
        else:
            for name in ("body", "hands", "face"):
                np.testing.assert_array_equal(getattr(loaded, name), getattr(track, name))
    assert len(messages) > 300
    assert all("bad.npz" in message for message in messages)


def test_mark_outside_and_face(make_track):
    points = np.array([[0, 0, 0.5], [79.4, 119.4, 1.5], [79.6, 5, 1], [-0.6, 5, 1], [5, np.nan, 1], [4, 4, 0]])
    result = mark_outside(points, (120, 80))
    assert result[:, 2].tolist() == [0.5, 1.0, 0, 0, 0, 0]
    np.testing.assert_array_equal(result[2:], 0)
    face = np.concatenate([np.random.default_rng(0).uniform(60, 95, (68, 2)), np.ones((68, 1))], axis=1)
    assert (mark_face(face, (120, 80))[:, 2] == 1).all(), "the centre is inside: kept as a whole"
    assert (mark_face(face, (120, 70))[:, 2] == 0).all()
