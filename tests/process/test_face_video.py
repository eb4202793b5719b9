"""Keypoints together with the video they were found in, and keypoints of the reference: no detector runs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.process.small import make_conditions, standing_figure
from xdyna.config.infer import InferConfig
from xdyna.media.video import VideoWriter
from xdyna.perception.face_patch import global_patch
from xdyna.perception.types import PoseTrack
from xdyna.pipelines import controls as module
from xdyna.pipelines import plan as plan_module
from xdyna.pipelines.driving import open_driving
from xdyna.pipelines.folder import find_checkpoint
from xdyna.pipelines.plan import Request, plan_animation, read_person
from xdyna.pipelines.writing import driving_images

HEIGHT, WIDTH, FRAMES = 96, 64, 6
GREYS = np.arange(FRAMES) * 35 + 50  # of the video's frames


def track_with_faces() -> PoseTrack:
    """A standing figure of 6 frames at 10 fps with a face."""
    track = standing_figure(frames=FRAMES, size=(HEIGHT, WIDTH))
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    track.face[:] = np.stack([32 + 5 * np.cos(angles), 30 + 6 * np.sin(angles), np.ones(68)], axis=-1)
    return track


def write_video(path: Path, *, frames: int = FRAMES, fps: float = 10, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    with VideoWriter(path, fps=fps, size=size) as writer:
        for grey in GREYS[:frames]:
            writer.write(np.full((*size, 3), grey, np.uint8))
    return path


@pytest.fixture(autouse=True)
def no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a detector was asked for")

    monkeypatch.setattr(module, "get_backend", refuse)
    monkeypatch.setattr(module, "track_person", refuse)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """points.npz and faces.mp4, which belong together."""
    track_with_faces().save(tmp_path / "points.npz")
    return tmp_path / "points.npz", write_video(tmp_path / "faces.mp4")


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [0, 2, 4], [1, 2, 5], [3]])
def test_faces_come_from_the_frames_the_points_were_found_in(tmp_path, files, kept):
    """Keypoints of some frames only, as a run with --stride or --frames leaves them."""
    _, video = files
    points = tmp_path / "some.npz"
    track_with_faces().select(kept).save(points)
    driving = open_driving(points, face_video=video)
    shown = np.array(kept)[driving.rows]  # frames of the video
    assert driving.video_frames(driving.rows) == shown.tolist()
    made = make_conditions(
        driving, InferConfig(), reference=np.zeros((96, 64, 3), np.uint8), size=(64, 64), face=True, cache_dir=None
    )
    assert made.face.shape == (len(driving.rows), 64, 64, 6)
    np.testing.assert_allclose(made.face[..., 3:].max(axis=(1, 2, 3)), GREYS[shown], atol=3)
    beside = [image.mean() for image in driving_images(driving, made.placement)]
    np.testing.assert_allclose(beside, GREYS[shown], atol=3)
    # The face stands where the landmarks say, after the crop of 8 px from above.
    [box] = {tuple(np.argwhere(patch.any(-1)).min(0)) for patch in made.face[..., 3:]}
    expected = np.argwhere(global_patch(np.ones((64, 64, 3), np.uint8), (15, 7, 48, 39)).any(-1)).min(0)
    np.testing.assert_allclose(box, expected, atol=2)


@pytest.mark.long
def test_it_equals_a_run_that_found_the_same_points(infer, files, tmp_path, monkeypatch):
    points, video = files
    assert infer("--drive", points, "--face-video", video, "--out", "points.mp4") == 0
    monkeypatch.setattr(module, "track_person", lambda *a, frame_indices, **k: track_with_faces().select(frame_indices))
    assert infer("--drive", video, "--out", "video.mp4") == 0
    assert infer("--drive", points, "--out", "faceless.mp4") == 0
    runs = {n: json.loads((tmp_path / f"{n}.run.json").read_text()) for n in ("points", "video", "faceless")}
    assert [runs[name]["face"] for name in runs] == [True, True, False]
    assert runs["points"]["conditions"] == runs["video"]["conditions"] != runs["faceless"]["conditions"]
    assert (tmp_path / "points.mp4").read_bytes() == (tmp_path / "video.mp4").read_bytes()
    assert (tmp_path / "points.grid.mp4").read_bytes() == (tmp_path / "video.grid.mp4").read_bytes()
    assert runs["points"]["inputs"]["face_video"]["path"] == str(video)
    assert 0 < runs["points"]["sampling_seconds"] <= runs["points"]["seconds"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 5}, "has 5 frames of 96x64 (HxW), but"),
        ({"size": (96, 32)}, "has 6 frames of 96x32 (HxW), but"),
        ({"fps": 15}, "0.333 s after frame 0, but in"),
        ({"fps": 8}, "0.625 s after frame 0, but in"),
    ],
)
def test_a_video_of_other_frames_is_refused(infer, files, tmp_path, capsys, change, message):
    points, _ = files
    other = write_video(tmp_path / "other.mp4", **change)
    assert infer("--drive", points, "--face-video", other, "--out", "out.mp4") == 2
    told = capsys.readouterr().err
    assert message in told
    assert str(other) in told
    assert not (tmp_path / "out.mp4").exists()


def test_frames_that_are_not_used_may_be_missing(infer, files, tmp_path):
    points, _ = files
    short = write_video(tmp_path / "short.mp4", frames=3)
    assert infer("--drive", points, "--face-video", short, "--frames", "3", "--out", "out.mp4") == 0


def test_wrong_use_is_told(infer, files, tmp_path, capsys):
    points, video = files
    assert infer("--drive", video, "--face-video", video) == 2
    assert "a driving video brings its own faces" in capsys.readouterr().err
    assert infer("--drive", points, "--face-video", tmp_path / "none.mp4") == 2
    assert "none.mp4: no such file" in capsys.readouterr().err
    assert infer("--drive", points, "--face") == 2
    assert "name the video it was made from with --face-video" in capsys.readouterr().err
    (tmp_path / "pairs.json").write_text(json.dumps([{"ref": "a.png", "drive": "b.npz"}]))
    assert infer("--batch", "pairs.json", "--face-video", video) == 2
    assert "leave out --ref, --drive, --out, --face-video" in capsys.readouterr().err


def test_points_without_a_face_go_on_without_it(infer, files, tmp_path, capsys):
    _, video = files
    standing_figure(frames=FRAMES, size=(HEIGHT, WIDTH)).save(tmp_path / "faceless.npz")
    assert infer("--drive", "faceless.npz", "--face-video", video, "--out", "out.mp4") == 0
    assert "going on without face control" in capsys.readouterr().out


def test_reference_points_replace_the_detector(infer, files, tmp_path, monkeypatch):
    """The puppet in the image is half as large and lower: the drawn skeleton and the face's image follow."""
    points, video = files
    half = track_with_faces()
    for part in (half.body, half.face):
        part[..., :2] = part[..., :2] * 0.5 + (16, 40)
    half.save(tmp_path / "ref.npz")
    drawn = []
    original = module.draw_styled

    def spy(body, *args, **kwargs):
        drawn.append(np.array(body))
        return original(body, *args, **kwargs)

    monkeypatch.setattr(module, "draw_styled", spy)
    options = ("--drive", points, "--face-video", video, "--align", "--size", "96x64", "--steps", "1")
    assert infer(*options, "--ref-keypoints", "ref.npz", "--out", "out.mp4") == 0
    np.testing.assert_allclose(drawn[0][8:14, :2], half.body[0, 8:14, :2], atol=1.0)
    run = json.loads((tmp_path / "out.run.json").read_text())
    assert run["alignment"]["scale"] == pytest.approx(0.5, abs=0.02)
    assert run["inputs"]["ref_keypoints"]["path"] == "ref.npz"


def test_reference_points_that_do_not_fit(infer, media, tmp_path, capsys):
    standing_figure(frames=1, size=(HEIGHT, WIDTH)).save(tmp_path / "ref.npz")
    standing_figure(frames=1, size=(HEIGHT, HEIGHT)).save(tmp_path / "wide.npz")
    nobody = standing_figure(frames=1, size=(HEIGHT, WIDTH))
    nobody.body[:] = 0
    nobody.save(tmp_path / "nobody.npz")
    for name, message in {
        "none.npz": "no such file",
        "wide.npz": "shows somebody in an image of 96x96 (HxW)",
        "nobody.npz": "shows nobody in an image of 96x64 (HxW)",
    }.items():
        assert infer("--align", "--ref-keypoints", name) == 2
        assert message in capsys.readouterr().err
    assert infer("--ref-keypoints", "ref.npz", "crop=none") == 2
    assert "give --align or another crop, or leave them out" in capsys.readouterr().err
    person = read_person(tmp_path / "ref.npz", (HEIGHT, WIDTH))
    np.testing.assert_array_equal(person.box, [18, 14, 46, 86])  # of the standing figure


def test_reference_points_tell_what_the_published_crop_cuts(media, checkpoint, tmp_path, monkeypatch):
    """Without --align and without a detector; the figure is 96 px high, and 64 px of it are kept."""
    monkeypatch.setattr(plan_module, "get_backend", lambda name: pytest.fail("a detector was asked for"))
    points = tmp_path / "ref.npz"
    standing_figure(frames=1, size=(HEIGHT, WIDTH)).save(points)
    request = Request(media / "ref.png", media / "driving.npz", ref_keypoints=points)
    found = find_checkpoint(checkpoint, lambda folder: None)
    [_, note] = plan_animation(request, InferConfig(height=32, width=32), found).notes
    # Rows 16 to 80 are kept; the figure is at 14 to 86, with a margin of 0.05 x 72 on each side.
    assert "the crop cuts the person in the reference (7% at the top, 12% at the bottom); crop=person keeps" in note
    assert not plan_animation(request, InferConfig(height=96, width=64), found).notes  # all of it is kept


@pytest.mark.parametrize(("align", "label"), [("global", "driving"), ("bones", "driving, by one scale")])
def test_an_aligned_run_warns_once_and_labels_what_it_shows(infer, files, tmp_path, monkeypatch, capsys, align, label):
    """A reference seen from behind. Driving images cannot follow single bones: they are labelled as what they are."""
    from xdyna.pipelines import examine, writing

    points, video = files
    reference = track_with_faces().select([0])
    swapped = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]
    dataclasses.replace(reference, body=reference.body[:, swapped]).save(tmp_path / "ref.npz")
    shown = list[list[str]]()
    for place in (examine, writing):
        original = place.contact_sheet
        monkeypatch.setattr(
            place,
            "contact_sheet",
            lambda rows, o=original, **options: (shown.append(list(rows)), o(rows, **options))[1],
        )
    given = ("--drive", points, "--face-video", video, "--ref-keypoints", tmp_path / "ref.npz", "--align", align)
    assert infer(*given, "--size", "96x64", "--preview", tmp_path / "p.png", "--out", "a.mp4", "--steps", "1") == 0
    told = capsys.readouterr().out
    assert told.count("left and right are the other way round") == 1, told
    assert shown[0] == ["reference", label, "skeleton on reference"]
    assert shown[1][:2] == ["reference", label]
    kept = json.loads((tmp_path / "a.run.json").read_text())["alignment"]
    assert any("left and right" in note for note in kept["warnings"])
