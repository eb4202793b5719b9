"""`make_conditions` with known keypoints: which crop, where joints and faces land, which frame shows what."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.process.small import make_conditions, standing_figure
from xdyna.config.infer import InferConfig
from xdyna.media.image import CropResize
from xdyna.media.video import VideoWriter
from xdyna.perception.face_patch import face_boxes, global_patch, local_patch
from xdyna.perception.smooth import OneEuro
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines import controls as module
from xdyna.pipelines.controls import Conditions
from xdyna.pipelines.driving import Driving, open_driving
from xdyna.pipelines.writing import driving_images

HEIGHT, WIDTH, FRAMES = 96, 64, 5
GREYS = np.arange(FRAMES) * 40 + 50  # of the driving frames
REFERENCE = np.zeros((96, 64, 3), np.uint8)


def known_track() -> PoseTrack:
    """A standing figure whose right wrist rises by 2 px a frame and whose face moves right by 1 px a frame."""
    track = standing_figure(frames=FRAMES, size=(HEIGHT, WIDTH))
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    circle = np.stack([28 + 5 * np.cos(angles), 30 + 6 * np.sin(angles), np.ones(68)], axis=-1)
    track.face[:] = circle
    track.face[:, :, 0] += np.arange(FRAMES)[:, None]
    return track


def driving_of(path: Path, rows: list[int], *, kind: str = "video", track: PoseTrack | None = None) -> Driving:
    faces = path if kind == "video" else None
    return Driving(path, kind, (HEIGHT, WIDTH), Fraction(10), 10.0, np.array(rows), 0.5, None, track, faces)


def make(driving: Driving, config: InferConfig | None = None, *, face: bool, size: tuple[int, int]) -> Conditions:
    return make_conditions(
        driving, config or InferConfig(), reference=REFERENCE, size=size, face=face, cache_dir=Path("points")
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of 96 x 64 px, each of one grey."""
    path = tmp_path_factory.mktemp("video") / "driving.mp4"
    with VideoWriter(path, fps=10, size=(HEIGHT, WIDTH)) as writer:
        for grey in GREYS:
            writer.write(np.full((HEIGHT, WIDTH, 3), grey, np.uint8))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Perception returns the known track; the list gets the arguments of each call."""
    calls: list[dict[str, Any]] = []

    def perceive(path: Path, *, frame_indices: np.ndarray, **options: Any) -> PoseTrack:
        calls.append({"path": path, "frame_indices": np.asarray(frame_indices).tolist(), **options})
        return known_track().select(frame_indices)

    monkeypatch.setattr(module, "track_person", perceive)
    return calls


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `draw_styled` is asked to draw."""
    calls: list[dict[str, Any]] = []
    original: Callable[..., np.ndarray] = module.draw_styled

    def spy(body: np.ndarray, hands: np.ndarray, face: np.ndarray, **options: Any) -> np.ndarray:
        calls.append({"body": np.array(body), "hands": np.array(hands), **options})
        return original(body, hands, face, **options)

    monkeypatch.setattr(module, "draw_styled", spy)
    return calls


def moved(points: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Keypoints through a crop, by hand: pixel centres lie at whole numbers."""
    out = points.copy()
    out[..., 0] = (points[..., 0] - box[0] + 0.5) * size[1] / box[2] - 0.5
    out[..., 1] = (points[..., 1] - box[1] + 0.5) * size[0] / box[3] - 0.5
    return np.where(points[..., 2:] > 0, out, 0)


# Of 96 x 64 px to a square: 32 px of slack, 8 above with face control, 16 without.
CROPS = [(True, (64, 64), (0, 8, 64, 64)), (False, (64, 64), (0, 16, 64, 64)), (False, (32, 32), (0, 16, 64, 64))]
CROPS += [(True, (32, 32), (0, 8, 64, 64)), (False, (96, 32), (16, 0, 32, 96)), (True, (96, 32), (16, 0, 32, 96))]


@pytest.mark.parametrize(("face", "size", "box"), CROPS)
def test_joints_land_where_the_crop_puts_them(video, asked, drawn, face, size, box):
    made = make(driving_of(video, list(range(FRAMES))), face=face, size=size)
    assert made.placement.crop == CropResize(box=box, size=size)
    assert made.pose.shape == (FRAMES, *size, 3)
    assert made.pose.dtype == np.uint8
    track = known_track()
    for frame, call in enumerate(drawn):
        np.testing.assert_allclose(call["body"], moved(track.body[frame], box, size), atol=1e-4)
        assert call["size"] == size
        for x, y, seen in call["body"]:
            if seen and 0 <= x < size[1] and 0 <= y < size[0]:
                assert made.pose[frame, int(y), int(x)].max() == 255
    assert len(drawn) == FRAMES
    np.testing.assert_array_equal(made.track.body, track.body)  # kept in the coordinates of the file


def test_hands_are_moved_as_well(video, asked, drawn, monkeypatch):
    track = known_track()
    track.hands[:, 1] = (20, 40, 1)
    monkeypatch.setattr(module, "track_person", lambda *args, **kwargs: track)
    make(driving_of(video, list(range(FRAMES))), face=False, size=(32, 32))
    for frame, call in enumerate(drawn):
        np.testing.assert_allclose(call["hands"], moved(track.hands[frame], (0, 16, 64, 64), (32, 32)), atol=1e-4)


@pytest.mark.parametrize(("size", "box"), [((64, 64), (0, 8, 64, 64)), ((128, 128), (0, 8, 64, 64))])
def test_face_patches_are_cut_at_the_moved_landmarks(video, asked, monkeypatch, size, box):
    """Channels 0-2 show eyes and mouth, 3-5 the face, both of the cropped frames at the moved landmarks."""
    noise = np.random.default_rng(0).integers(1, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    monkeypatch.setattr(module, "read_frames", lambda path, rows: iter(noise[list(rows)]))
    made = make(driving_of(video, list(range(FRAMES))), face=True, size=size)
    assert made.face.shape == (FRAMES, *size, 6)
    landmarks = moved(known_track().face, box, size)
    boxes = face_boxes(landmarks, size=size)
    for frame, picture in enumerate(noise):
        fitted = CropResize(box=box, size=size).image(picture, interpolation="area")
        points = landmarks[frame, :, :2]
        local, whole = local_patch(fitted, points, boxes[frame]), global_patch(fitted, boxes[frame])
        assert 0 < np.count_nonzero(local) < np.count_nonzero(whole) < fitted.size
        np.testing.assert_array_equal(made.face[frame, ..., :3], local)
        np.testing.assert_array_equal(made.face[frame, ..., 3:], whole)


def test_without_face_there_are_no_patches(video, asked):
    assert make(driving_of(video, [0, 1]), face=False, size=(64, 64)).face is None


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 1, 3, 4, 4], [2], [4, 4]])
@pytest.mark.parametrize("kind", ["video", "keypoints"])
def test_repeated_frames_show_the_right_pose(video, asked, rows, kind):
    """A rate above the source's repeats frames: each is looked at once and shown as often as it is due."""
    size, face = (64, 64), kind == "video"
    track = known_track() if kind == "keypoints" else None
    each = make(driving_of(video, list(range(FRAMES)), kind=kind, track=track), face=face, size=size)
    assert len({frame.tobytes() for frame in each.pose}) == FRAMES  # the frames can be told apart
    made = make(driving_of(video, rows, kind=kind, track=track), face=face, size=size)
    np.testing.assert_array_equal(made.pose, each.pose[rows])
    if kind == "video":
        assert asked[-1]["frame_indices"] == sorted(set(rows))
        assert made.face.shape == (len(rows), *size, 6)
        greys = made.face[..., 3:].max(axis=(1, 2, 3))
        np.testing.assert_allclose(greys, GREYS[rows], atol=3)


@pytest.mark.parametrize(
    ("gone", "rows", "said"),
    [
        ([], range(5), None),
        ([4], [0, 2], None),
        ([0, 2, 3], range(5), "60% of the driving frames (3 of 5: at 0.00 s, 0.20 - 0.30 s)"),
        ([1], [0, 1, 1, 1], "75% of the driving frames (3 of 4: at 0.10 s)"),
    ],
)
@pytest.mark.parametrize("align", ["none", "global"])
def test_frames_without_a_person_are_said_in_every_mode(video, capsys, gone, rows, said, align):
    """Share and times, by the frames that are shown; with alignment and without."""
    track = known_track()
    for points in (track.body, track.hands, track.face):
        points[gone] = 0
    driving = driving_of(Path("p.npz"), list(rows), kind="keypoints", track=track)
    figure = standing_figure(frames=1, size=(HEIGHT, WIDTH))
    person = Person(figure.body[0], figure.hands[0], figure.face[0], np.array([18, 14, 46, 86], np.float32), 1.0)
    make_conditions(driving, InferConfig(align=align), reference=REFERENCE, size=(96, 64), face=False, cache_dir=None,
                    person=person)  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if "nobody is seen" in line]
    assert len(lines) == (said is not None)
    assert said is None or lines[0].startswith(f"warning: nobody is seen in {said}")


@pytest.mark.parametrize(
    ("part", "face", "said"),
    [("body", False, "person"), ("face", True, "face"), ("face", False, None), (None, True, None)],
)
def test_what_the_crop_leaves_out_is_said(video, capsys, part, face, said):
    """A landscape video whose person stands at its edge, made into an upright one."""
    track = known_track()
    if part is not None:
        getattr(track, part)[3:, :, 0] += 1000
    driving = dataclasses.replace(
        driving_of(Path("p.npz"), list(range(5)), kind="keypoints", track=track), face_video=video
    )
    make_conditions(driving, InferConfig(), reference=REFERENCE, size=(96, 64), face=face, cache_dir=None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    expected = f"warning: the crop leaves the {said} out of 40% of the driving frames (2 of 5: at 0.30 - 0.40 s)"
    assert [line.partition(";")[0] for line in lines] == ([expected] if said else [])


def _zero_width(track: PoseTrack) -> None:
    track.face[..., 0] = 30


def _one_point(track: PoseTrack) -> None:
    track.face[1, :, :2] = 30


def _far_outside(track: PoseTrack) -> None:
    track.body[:, 4, :2] = (-500, 4000)


def _hidden_arm(track: PoseTrack) -> None:
    track.body[:, 2:5] = 0


def _half_empty(track: PoseTrack) -> None:
    track.body[0, 8:] = 0


def _face_alone(track: PoseTrack) -> None:
    track.body[:, 1:] = 0


@pytest.mark.parametrize("spoil", [_zero_width, _one_point, _far_outside, _hidden_arm, _half_empty, _face_alone])
def test_incomplete_people_are_drawn_as_far_as_they_go(video, spoil):
    """Neither an error nor an empty control image."""
    track = known_track()
    spoil(track)
    driving = dataclasses.replace(
        driving_of(Path("p.npz"), list(range(5)), kind="keypoints", track=track), face_video=video
    )
    made = make_conditions(driving, InferConfig(), reference=REFERENCE, size=(96, 64), face=True, cache_dir=None)
    assert made.pose.any(axis=(1, 2, 3)).all()
    assert made.face is not None
    assert made.face.any(axis=(1, 2, 3)).all()


def test_long_clips_are_kept_in_a_file(video, asked, monkeypatch):
    """Beyond the limit the same images lie in a file instead of in memory."""
    driving = driving_of(video, [0, 0, 1, 3, 3])
    plain = make(driving, face=True, size=(64, 64))
    assert plain.pose.flags.owndata
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1)
    filed = make(driving, face=True, size=(64, 64))
    assert not filed.pose.flags.owndata
    assert filed.face is not None
    assert not filed.face.flags.owndata
    np.testing.assert_array_equal(filed.pose, plain.pose)
    np.testing.assert_array_equal(filed.face, plain.face)


def test_repeated_frames_of_a_pose_video(video):
    made = make(driving_of(video, [0, 2, 2, 4], kind="pose"), face=False, size=(32, 32))
    np.testing.assert_allclose(made.pose.mean(axis=(1, 2, 3)), GREYS[[0, 2, 2, 4]], atol=3)
    assert made.track is None


def test_higher_rate_from_the_file_on(video, asked):
    """--fps 20 of a video of 10 fps: every pose twice."""
    driving = open_driving(video, fps=20)
    made = make(driving, face=False, size=(64, 64))
    assert len(made.pose) == 2 * FRAMES
    np.testing.assert_array_equal(made.pose[::2], made.pose[1::2])
    assert len({frame.tobytes() for frame in made.pose}) == FRAMES


def test_driving_images_go_through_the_same_crop(asked, tmp_path):
    """Rows of different greys: the image beside the result shows the part that the skeleton was drawn for."""
    ramp = np.repeat(np.arange(HEIGHT, dtype=np.uint8)[:, None] * 2, WIDTH, axis=1)
    path = tmp_path / "ramp.mp4"
    with VideoWriter(path, fps=10, size=(HEIGHT, WIDTH)) as writer:
        for _ in range(FRAMES):
            writer.write(np.stack([ramp] * 3, axis=-1))
    driving = driving_of(path, [0, 0, 3])
    for face, top in ((True, 8), (False, 16)):
        made = make(driving, face=face, size=(64, 64))
        pictures = list(driving_images(driving, made.placement))
        assert len(pictures) == 3
        for picture in pictures:
            np.testing.assert_allclose(picture[..., 0], ramp[top : top + 64], atol=4)
            assert abs(int(picture[0].mean()) - 2 * top) <= 3
        if face:
            shown = made.face[0, ..., 3] > 0
            np.testing.assert_allclose(made.face[0, ..., 3][shown], pictures[0][..., 0][shown], atol=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"smooth": None, "max_gap": 8, "person": 0, "backend": "mediapipe"}),
        ({"smooth": True}, {"smooth": OneEuro(), "max_gap": 8, "person": 0, "backend": "mediapipe"}),
        ({"max_gap": 3, "person": 2}, {"smooth": None, "max_gap": 3, "person": 2, "backend": "mediapipe"}),
        ({"pose_backend": "dwpose"}, {"smooth": None, "max_gap": 8, "person": 0, "backend": "dwpose"}),
        ({}, {"crowd": "auto"}),
        ({"crowd": "all"}, {"crowd": "all", "fps": 10.0}),
    ],
)
def test_settings_reach_perception(video, asked, change, expected):
    make(driving_of(video, [1, 3]), InferConfig(**change), face=False, size=(64, 64))
    [call] = asked
    assert {name: call[name] for name in expected} == expected
    assert call["path"] == video
    assert call["frame_indices"] == [1, 3]
    assert call["cache_dir"] == Path("points")


@pytest.mark.parametrize("head", [False, True])
def test_head_reaches_the_drawing(video, drawn, monkeypatch, head):
    track = known_track()
    track.body[:, 14:18] = (28, 50, 1)
    monkeypatch.setattr(module, "track_person", lambda *args, **kwargs: track)
    made = make(driving_of(video, list(range(FRAMES))), InferConfig(head=head), face=False, size=(96, 64))
    assert [call["style"].head for call in drawn] == [head] * FRAMES
    track.body[:, 14:18] = 0
    without = make(driving_of(video, list(range(FRAMES))), InferConfig(head=head), face=False, size=(96, 64))
    assert (made.pose != without.pose).any() == head


def test_pose_videos_are_not_looked_through_for_people(video, asked, media):
    """Nor are keypoint files; a pose video's faces come from the video beside it."""
    make(driving_of(video, [0, 1], kind="pose"), face=False, size=(64, 64))
    make(driving_of(media / "driving.npz", [0], kind="keypoints", track=known_track()), face=False, size=(64, 64))
    assert asked == []
    poses = open_driving(media / "poses.mp4", kind="pose", face_video=media / "poses.mp4", frames=3)
    make(poses, face=True, size=(64, 64))
    assert [call["path"] for call in asked] == [media / "poses.mp4"]
