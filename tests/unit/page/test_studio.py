"""What the page makes of a visitor's wish, without Gradio and without weights."""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xdyna.config.infer import CROPS as INFER_CROPS
from xdyna.config.infer import CROWDS
from xdyna.config.page import PageConfig
from xdyna.core.errors import UsageError
from xdyna.media.image import read_image, write_png
from xdyna.page.studio import SAMPLE_IMAGE, SAMPLE_VIDEO, SEARCHES, Sample, Studio, Wish, modes
from xdyna.page.uploads import Upload
from xdyna.page.words import CROPS, FORCE
from xdyna.perception.types import PoseTrack
from xdyna.pipelines.driving import open_driving

LIMITS = PageConfig(device="cpu", max_frames=40)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("page")
    (root / "uploads").mkdir()
    made = Studio(root, root / "uploads", LIMITS, checkpoint=Path("xdyna-tiny"))
    yield made
    made.close()


@pytest.fixture
def wish(studio: Studio) -> Wish:
    """The sample, sent back by its visitor."""
    sent = [shutil.copy(path, studio.uploads) for path in (SAMPLE_IMAGE.media, SAMPLE_VIDEO.media)]
    return Wish(*sent)


@pytest.fixture
def own_image(studio: Studio) -> str:
    """The sample with one other pixel: nobody knows its keypoints."""
    image = read_image(SAMPLE_IMAGE.media)
    image[0, 0] ^= 1
    return str(write_png(studio.uploads / "own.png", image, overwrite=True))


@pytest.fixture
def own_video(studio: Studio) -> str:
    """The sample's bytes and one more, which no decoder reads."""
    path = studio.uploads / "own.mp4"
    path.write_bytes(SAMPLE_VIDEO.media.read_bytes() + b"\0")
    return str(path)


def test_modes_are_the_presets_that_sample() -> None:
    found = modes()
    assert list(found)[:3] == ["exact", "fast", "preview"]
    assert "puppet_face" not in found
    assert all(found.values())


def test_settings(studio: Studio) -> None:
    found = studio.settings(Wish(None, None, mode="fast", frames=8.0, steps=3, seed=7, align=True))
    assert (found.frames, found.steps, found.seed, found.align, found.scheduler) == (8, 3, 7, "auto", "dpmsolver++")
    assert (found.guidance, found.guidance_interval) == (None, [0.0, 1.0])  # xdyna-tiny is sampled without
    plain = studio.settings(Wish(None, None, mode="exact", frames=0, steps=0, seed=None))
    assert (plain.frames, plain.steps, plain.seed, plain.align) == (40, None, 42, "none")
    assert (plain.person, plain.crowd) == (0, "auto")
    chosen = studio.settings(Wish(None, None, person=2.0, crowd="all"))
    assert (chosen.person, chosen.crowd) == (2, "all")
    preview = studio.settings(Wish(None, None, mode="preview", frames=500 / 20))
    assert (preview.frames, preview.fps) == (25, 8)
    assert preview.height is None  # xdyna-tiny makes 128 px: its preview is not larger
    assert studio.settings(Wish(None, None, mode="preview")).frames == 32


@pytest.mark.parametrize(
    ("name", "value"),
    [("frames", -1), ("frames", 41), ("frames", 2.5), ("frames", math.nan), ("frames", math.inf), ("frames", "4")]
    + [("steps", -1), ("steps", 1000), ("steps", True), ("steps", [4]), ("seed", -1), ("seed", 2**40)]
    + [("person", -1), ("person", 101), ("person", "1")],
)
def test_numbers_out_of_range(studio: Studio, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*; expected a whole number from"):
        studio.settings(dataclasses.replace(Wish(None, None), **{name: value}))


@pytest.mark.parametrize("mode", ["", "puppet_face", "../infer", "fast steps=3", None, ["fast"], {"a": 1}])
def test_unknown_modes(studio: Studio, mode: Any) -> None:
    with pytest.raises(UsageError, match="no mode of that name; expected one of exact, fast, preview"):
        studio.settings(Wish(None, None, mode=mode))


@pytest.mark.parametrize("crowd", ["", "everybody", None, ["all"], {}])
def test_unknown_searches(studio: Studio, crowd: Any) -> None:
    with pytest.raises(UsageError, match="no such search for everybody; expected one of auto, all, off"):
        studio.settings(Wish(None, None, crowd=crowd))


@pytest.mark.parametrize("crop", ["", "face", None, 1])
def test_unknown_crops(studio: Studio, crop: Any) -> None:
    with pytest.raises(UsageError, match="no such crop; expected one of published, person, none"):
        studio.settings(Wish(None, None, crop=crop))


def test_choices_are_those_that_there_are() -> None:
    assert tuple(SEARCHES) == CROWDS
    assert tuple(CROPS) == INFER_CROPS


def test_the_sample_is_known_by_its_content(studio: Studio, wish: Wish, tmp_path: Path) -> None:
    request, settings, notes = studio.request(wish, tmp_path)
    assert request.reference == tmp_path / "image.png"
    assert request.driving == SAMPLE_VIDEO.points
    assert request.face_video == tmp_path / "video.mp4"
    assert request.ref_keypoints == SAMPLE_IMAGE.points  # they count as detected
    assert not request.force
    assert (settings.align, settings.face_source) == ("none", None)
    assert notes == ["the sample's puppet", "the sample's dance"]
    whole, settings, _ = studio.request(dataclasses.replace(wish, crop="none", mode="preview"), tmp_path / "b")
    assert whole.ref_keypoints is None  # of no use there, which would be refused
    assert (settings.crop, settings.height) == ("none", None)
    aligned, _, _ = studio.request(dataclasses.replace(wish, crop="none", align=True, force=True), tmp_path / "c")
    assert aligned.ref_keypoints == SAMPLE_IMAGE.points
    assert aligned.force


def test_a_person_who_moves_the_puppet(studio: Studio, wish: Wish, own_video: str, tmp_path: Path) -> None:
    request, settings, notes = studio.request(dataclasses.replace(wish, video=own_video), tmp_path)
    assert (request.driving, request.face_video) == (tmp_path / "video.mp4", None)
    assert request.ref_keypoints == SAMPLE_IMAGE.points
    assert (settings.align, settings.face_source) == ("auto", "xdyna.puppets.actor.PuppetFaces")
    assert "a person has not the puppet's size and place, so the person is fitted to it" in notes


def test_an_image_of_ones_own(studio: Studio, wish: Wish, own_image: str, tmp_path: Path) -> None:
    request, settings, notes = studio.request(dataclasses.replace(wish, image=own_image), tmp_path)
    assert (request.ref_keypoints, settings.align, settings.face_source) == (None, "none", None)
    assert notes[0] == "your image of 256 x 256 px"
    assert any("knows rendered puppets only" in note for note in notes)


def test_the_look(studio: Studio, wish: Wish) -> None:
    before = sorted(studio.jobs.root.iterdir()) if studio.jobs.root.exists() else []
    found = studio.look(dataclasses.replace(wish, frames=8, align=True))
    assert found.image.dtype == np.uint8
    assert found.image.shape[1] > 3 * found.image.shape[0]
    assert any(note.startswith("alignment: driving person scaled by") for note in found.notes)
    assert sorted(studio.jobs.root.iterdir()) == before
    # The skeletons are there: the same look at another part of the dance differs.
    other = studio.look(dataclasses.replace(wish, frames=40, align=True))
    assert not np.array_equal(found.image, other.image)


def test_the_look_says_how_well_they_fit(studio: Studio, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples do; a dancer of a fifth of the size does not, which is said and drawn, not refused."""
    found = studio.look(dataclasses.replace(wish, frames=8))
    assert found.notes[2].startswith("suitability: 0.")
    assert "(good; weakest: " in found.notes[2]
    assert not any(note.startswith("warning") for note in found.notes)
    dance = PoseTrack.load(SAMPLE_VIDEO.points)
    small = studio.root / "small.npz"
    moved = {name: getattr(dance, name) * np.float32([0.2, 0.2, 1]) for name in ("body", "hands", "face")}
    dataclasses.replace(dance, **moved).save(small)
    monkeypatch.setattr("xdyna.page.studio.SAMPLE_VIDEO", Sample(SAMPLE_VIDEO.media, small))
    poor = studio.look(dataclasses.replace(wish, frames=8))
    assert poor.notes[2] == f"warning: they do not fit, so nothing is animated without “{FORCE}”"
    assert "(refuse; weakest: scale)" in poor.notes[3]
    (scale,) = [note for note in poor.notes if note.startswith("warning: scale")]
    assert "0.20 times as large" in scale
    assert "give “Fit the person in the video to the one in the image”" in scale
    assert poor.image.shape == found.image.shape
    fitted = studio.look(dataclasses.replace(wish, frames=8, align=True))
    assert "(refuse;" not in " ".join(fitted.notes)


def test_more_frames_are_looked_at_than_are_shown(studio: Studio, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of twelve is not drawn; that nobody is there is said."""
    dance = PoseTrack.load(SAMPLE_VIDEO.points)
    gone = {name: getattr(dance, name).copy() for name in ("body", "hands", "face")}
    second = open_driving(SAMPLE_VIDEO.points, frames=12).rows[1]
    for points in gone.values():
        points[second] = 0
    away = studio.root / "away.npz"
    dataclasses.replace(dance, **gone).save(away)
    monkeypatch.setattr("xdyna.page.studio.SAMPLE_VIDEO", Sample(SAMPLE_VIDEO.media, away))
    found = studio.look(dataclasses.replace(wish, frames=12))
    (warning,) = [note for note in found.notes if note.startswith("warning")]
    assert warning.startswith("warning: nobody is seen in 8% of the driving frames (1 of 12: at ")


@pytest.mark.usefixtures("detector")
def test_nobody_in_the_image(studio: Studio, wish: Wish) -> None:
    sent = write_png(studio.uploads / "grey.png", np.full((300, 300, 3), 128, np.uint8), overwrite=True)
    with pytest.raises(ValueError, match="no person was found in the reference"):
        studio.look(dataclasses.replace(wish, image=str(sent), align=True))


def test_what_cannot_be_used_is_said_at_once(studio: Studio, wish: Wish) -> None:
    for wrong in ({"image": None}, {"video": None}, {"mode": "x"}, {"steps": -1}):
        with pytest.raises(ValueError):
            studio.submit(dataclasses.replace(wish, **wrong))
    assert studio.jobs.counts() == (0, 0)


def test_sentences_name_no_folder_of_this_machine(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = studio.root / "jobs" / "job-1" / "video.mp4"
    said = studio.explain(ValueError(f"'{inside}' is damaged; see {studio.checkpoint.folder}/unet and {inside}"))
    assert said == "'video.mp4' is damaged; see xdyna-tiny/unet and video.mp4".replace("xdyna-tiny/unet", "unet")
    assert str(studio.root) not in said
    assert "the memory is full" in studio.explain(MemoryError())
    said = studio.explain(KeyError("/etc/secret"))
    assert said == "something went wrong here (KeyError); whoever runs this page finds more in its log"
    assert "/etc/secret" in capsys.readouterr().err  # for whoever runs it
    monkeypatch.setattr(studio, "debug", True)
    studio.explain(UsageError("x"))
    assert "UsageError" in capsys.readouterr().err


def test_another_file_of_the_samples_size_is_not_the_sample(tmp_path: Path) -> None:
    content = bytearray(SAMPLE_IMAGE.media.read_bytes())
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert SAMPLE_IMAGE.is_in(Upload(path, ""))
    content[-20] ^= 1
    path.write_bytes(content)
    assert not SAMPLE_IMAGE.is_in(Upload(path, ""))
