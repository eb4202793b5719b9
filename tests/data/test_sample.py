import numpy as np
import pytest

from xdyna.data.sample import sample_driving, sample_motion, sample_reference, write_sample
from xdyna.media import MediaError, probe, read_frames, read_image
from xdyna.perception.types import PoseTrack

SIZE = (224, 128)
LIMBS = [(2, 3), (3, 4), (5, 6), (6, 7), (1, 2), (1, 5)]


def test_same_arguments_same_pixels():
    assert np.array_equal(sample_reference(SIZE, 3), sample_reference(SIZE, 3))
    assert not np.array_equal(sample_reference(SIZE, 3), sample_reference(SIZE, 4))
    first, second = (list(sample_driving(4, 8, SIZE, 1)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[-1], list(sample_driving(4, 8, SIZE, 2))[-1])


@pytest.mark.parametrize("size", [(896, 512), (64, 64), (80, 128), (33, 47)])
def test_shapes(size):
    picture = sample_reference(size)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    frames = list(sample_driving(2, 8, size))
    assert [frame.shape for frame in frames] == [(*size, 3)] * 2
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 300


def test_motion_is_a_valid_track_inside_the_picture():
    motion = sample_motion(60, 15, SIZE, 0)
    track = PoseTrack(**motion)
    assert len(track) == 60
    assert track.found.all()
    for part, count in (("body", 18), ("hands", 42), ("face", 68)):
        points = motion[part].reshape(60, count, 3)
        assert points.dtype == np.float32
        assert (points[..., 2] == 1).all()
        assert points[..., 0].min() >= 0
        assert points[..., 0].max() <= SIZE[1]
        assert points[..., 1].min() >= 0
        assert points[..., 1].max() <= SIZE[0]
    assert motion["times"] == pytest.approx(np.arange(60) / 15)


def test_motion_is_smooth_and_keeps_its_bones():
    motion = sample_motion(120, 30, (896, 512), 0)
    body = motion["body"][..., :2].astype(float)
    torso = np.hypot(*(body[0, 1] - body[0, [8, 11]].mean(0)))
    speed = np.hypot(*np.moveaxis(np.diff(body, axis=0), -1, 0)) / torso * 30
    assert speed[0].max() < 0.3  # it begins at rest
    assert 2.0 < speed.max() < 8.0  # then moves, without jumps
    jerk = np.abs(np.diff(body, n=3, axis=0)).max() / torso
    assert jerk < 0.05
    for a, b in LIMBS:
        length = np.hypot(*(body[:, a] - body[:, b]).T)
        assert np.ptp(length) < 0.12 * length.mean(), (a, b)


def test_first_pose_is_the_reference_pose():
    """One scene holds both: whatever the clothes, frame 0 of any length has the proportions of the reference."""
    assert np.array_equal(sample_motion(1, 8, SIZE, 5)["body"][0], sample_motion(40, 25, SIZE, 5)["body"][0])
    assert np.array_equal(sample_motion(1, 8, SIZE, 5)["body"][0], sample_motion(1, 8, SIZE, 6)["body"][0])
    left, right = (
        sample_motion(1, 8, SIZE)["body"][0][[5, 6, 7, 11, 12, 13]],
        sample_motion(1, 8, SIZE)["body"][0][[2, 3, 4, 8, 9, 10]],
    )
    middle = SIZE[1] / 2
    assert left[:, 0] - middle == pytest.approx(
        middle - right[:, 0], abs=1e-3
    )  # left of the figure is right on the screen
    assert (left[:, 0] > middle).all()


def test_figure_is_drawn_where_the_points_are():
    """Skin at the middle of the face, hand and cheek; the clothes' colours at chest and thigh."""
    motion, frames = sample_motion(12, 8, (896, 512)), list(sample_driving(12, 8, (896, 512)))
    for k in (0, 5, 11):
        body, hands, face = (motion[part][k][..., :2] for part in ("body", "hands", "face"))

        def colour(point, picture=frames[k]):
            x, y = np.round(point).astype(int)
            return picture[y, x].astype(int)

        skin = np.array([224, 172, 136])
        for spot in (face[[29, 2]].mean(0), face[[29, 14]].mean(0), *hands[:, [0, 9]].mean(1)):
            assert np.abs(colour(spot) - skin).max() < 60
        assert np.abs(colour(body[[1, 8, 11]].mean(0)) - (232, 102, 74)).max() < 12
        assert np.abs(colour(0.4 * body[8] + 0.6 * body[9]) - (52, 68, 118)).max() < 12


def test_face_moves():
    face = sample_motion(48, 12, (896, 512))["face"][..., :2]
    width = np.hypot(*(face[:, 16] - face[:, 0]).T)
    gap = np.hypot(*(face[:, 66] - face[:, 62]).T) / width
    eye = np.hypot(*(face[:, 37] - face[:, 41]).T) / width
    assert gap.max() > 2 * gap[0] > 0
    assert eye.min() < 0.5 * eye.max()


def test_written_files(tmp_path):
    picture, video, points = write_sample(tmp_path / "sample", size=SIZE, frames=5, fps=8)
    assert np.array_equal(read_image(picture), sample_reference(SIZE))
    info = probe(video)
    assert (info.frame_count, info.fps, info.height, info.width) == (5, 8.0, *SIZE)
    drawn = list(sample_driving(5, 8, SIZE))
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(read_frames(video), drawn, strict=True)) < 3
    track = PoseTrack.load(points)
    assert np.array_equal(track.body, sample_motion(5, 8, SIZE)["body"])
    assert track.size == SIZE
    with pytest.raises(MediaError, match="exists already"):
        write_sample(tmp_path / "sample", size=SIZE, frames=5, fps=8)
    before = video.read_bytes()
    write_sample(tmp_path / "sample", size=SIZE, frames=5, fps=8, overwrite=True)
    assert video.read_bytes() == before


def test_refused():
    for kwargs in ({"frames": 0}, {"fps": 0}, {"fps": float("nan")}):
        with pytest.raises(ValueError, match="at least 1 frame and a positive rate"):
            sample_motion(**{"frames": 4, "fps": 8.0, **kwargs})


@pytest.mark.slow
def test_a_detector_for_people_sees_the_figure():
    """The demo may read the video instead of the points: MediaPipe finds the drawn joints."""
    pytest.importorskip("mediapipe")
    from xdyna.perception.base import get_backend

    backend = get_backend("mediapipe")
    motion, frames = sample_motion(8, 8), list(sample_driving(8, 8))
    for k in (0, 4, 7):
        people = backend.detect(frames[k])
        assert len(people) == 1
        truth, seen = motion["body"][k][:14, :2], people[0].body[:14]
        torso = np.hypot(*(truth[1] - truth[[8, 11]].mean(0)))
        assert (seen[:, 2] > 0.3).all()
        assert np.hypot(*(seen[:, :2] - truth).T).mean() / torso < 0.08
        assert (people[0].face[:, 2] > 0).all()
