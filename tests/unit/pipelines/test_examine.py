"""What is known of an animation before it is made: fitted or refused, compared, drawn. No detector, no networks."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.process.small import standing_figure
from xdyna.config.infer import InferConfig
from xdyna.core.progress import Watch
from xdyna.media.image import CropResize, read_image, write_png
from xdyna.perception.align import AlignmentReport
from xdyna.perception.errors import PerceptionError
from xdyna.perception.retarget import Fit
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines import controls, examine
from xdyna.pipelines.controls import Conditions, Placed, Placement, look_for_reference, place, prepare, some_pose_maps
from xdyna.pipelines.crop import published_crop
from xdyna.pipelines.driving import Driving
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.outputs import OutputFiles
from xdyna.pipelines.plan import Plan, Request

REFERENCE = np.full((96, 64, 3), 90, np.uint8)
OWN = CropResize(box=(4, 8, 48, 72), size=(96, 64))  # of a person, not the published one


def someone() -> Person:
    figure = standing_figure(frames=1)
    return Person(figure.body[0], figure.hands[0], figure.face[0], np.array([18, 14, 46, 86], np.float32), 1.0)


def made_plan(*, rows: list[int] | None = None, kind: str = "keypoints", request: dict[str, Any] | None = None,
              align: str = "none", **changes: Any) -> Plan:  # fmt: skip
    track = standing_figure(frames=5) if kind == "keypoints" else None
    driving = Driving(Path("p"), kind, (96, 64), Fraction(10), 10.0, np.array(rows or range(5)), 0.5, None, track, None)
    plan = Plan(
        Request(REFERENCE, Path("p"), **(request or {})), InferConfig(align=align),
        Checkpoint(Path("none"), (96, 64), True, True, vae_scale=8, max_context=16), REFERENCE, (96, 64),
        published_crop(REFERENCE.shape, (96, 64), face=False), driving, OutputFiles(Path("out.mp4")), False,
    )  # fmt: skip
    return dataclasses.replace(plan, **changes)


def report(*, usable: bool = True, score: float = 0.9, **changes: Any) -> AlignmentReport:
    given: dict[str, Any] = {
        "scale": 0.5, "offset": (3.0, 4.0), "source_size": (96, 64), "size": (96, 64), "segments": ("torso",),
        "anchor": "neck", "ground": False, "warnings": (), "usable": usable, "score": score,
    }  # fmt: skip
    return AlignmentReport(**(given | changes))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fit_track` gives the track as it is with this report."""

    def give(found: AlignmentReport, heads: np.ndarray | None = None) -> None:
        monkeypatch.setattr(controls, "fit_track", lambda track, *a, **k: Fit(track, found, heads))

    return give


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_an_alignment_that_cannot_be_trusted_is_refused(fitted) -> None:
    fitted(report(usable=False, score=0.12))
    given = {"align": "global", "person": someone()}
    with pytest.raises(PerceptionError, match=r"cannot be aligned well enough.*score 0\.12.*or give --force"):
        place(standing_figure(frames=5), made_plan(**given))
    forced = place(standing_figure(frames=5), made_plan(request={"force": True}, **given))
    assert forced.placement.alignment == report(usable=False, score=0.12)


def test_a_fitted_track_goes_through_the_crop_of_the_reference(fitted) -> None:
    fitted(report())
    track = standing_figure(frames=5)
    placed = place(track, made_plan(align="global", person=someone(), crop=OWN))
    np.testing.assert_array_equal(placed.track.body, track.transform(OWN).body)
    assert placed.placement.crop == OWN


def test_what_suitability_tells_is_not_told_twice(fitted) -> None:
    fitted(report(warnings=("another posture", "few segments"), mismatches=("another posture",)))
    said: list[str] = []
    place(standing_figure(frames=5), made_plan(align="global", person=someone()), watch=Watch(tell=said.append))
    assert [line for line in said if line.startswith("warning")] == ["warning: few segments"]


def test_a_fitted_person_has_no_crop_to_be_told_of(fitted) -> None:
    """--align is what a person outside of the crop is mended by."""
    fitted(report())
    away = standing_figure(frames=5)
    away.body[..., 0] += np.where(away.body[..., 2] > 0, 900, 0)
    for align, told in (("none", 1), ("global", 0)):
        said: list[str] = []
        prepare(away, made_plan(align=align, person=someone()), watch=Watch(tell=said.append))
        assert len([line for line in said if "the crop leaves the person out" in line]) == told, align


@pytest.mark.parametrize(("x", "y", "told"), [(10, 75, 0), (75, 10, 1), (63, 95, 0), (64, 95, 1), (63, 96, 1)])
def test_the_crop_is_left_at_its_own_sides(x: float, y: float, told: int) -> None:
    track = standing_figure(frames=2)
    track.body[:, :, :2] = (x, y)
    said: list[str] = []
    prepare(track, made_plan(rows=[0, 1]), watch=Watch(tell=said.append))
    assert len([line for line in said if "the crop leaves the person out" in line]) == told


def test_each_head_goes_where_its_own_frame_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of faces that come from the driving video."""
    heads = np.array([[1.0, 0, 0], [1.0, 12, 0], [1.0, 0, 20]])
    dot = np.zeros((96, 64, 3), np.uint8)
    dot[40:44, 20:24] = 255
    monkeypatch.setattr(controls, "read_frames", lambda path, rows: iter([dot] * len(rows)))
    placement = Placement(CropResize(box=(0, 0, 64, 96), size=(96, 64)), report(scale=1.0, offset=(50.0, 50.0)), heads)
    plan = made_plan()
    plan = dataclasses.replace(plan, driving=dataclasses.replace(plan.driving, face_video=Path("v.mp4")))
    images = controls._driving_frames(plan, placement, np.arange(3))
    places = [np.argwhere(image[..., 0] > 128).mean(axis=0) for image in images]
    np.testing.assert_allclose(places, [(41.5, 21.5), (41.5, 33.5), (61.5, 21.5)], atol=0.6)


def test_the_hash_of_control_images_is_that_of_all() -> None:
    pose, face = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 6), np.uint8)
    other_pose, other_face = pose.copy(), face.copy()
    other_pose[2, 3, 3, 2] = other_face[2, 3, 3, 5] = 1
    placement = Placement(OWN)
    pairs = [(pose, face), (other_pose, face), (pose, other_face), (pose, None)]
    made = [Conditions(*pair, placement, None, None).digest() for pair in pairs]
    assert len(set(made)) == 4
    assert made[0] == Conditions(pose.copy(), face.copy(), Placement(OWN), None, None).digest()


# --- the person in the reference --------------------------------------------------------------------------------------


def test_the_reference_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def backend(name: str) -> Any:
        looked.append(name)
        return SimpleNamespace(detect=lambda image: [])

    monkeypatch.setattr(controls, "get_backend", backend)
    assert look_for_reference(made_plan(), Watch()) is None
    assert looked == ["mediapipe"]
    known = someone()
    assert look_for_reference(made_plan(searched=True), Watch()) is None
    assert look_for_reference(made_plan(person=known), Watch()) is known
    assert looked == ["mediapipe"]


@pytest.mark.parametrize("error", [PerceptionError("mediapipe is not installed"), OSError("no room")])
def test_a_reference_that_nobody_can_search_is_a_note(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def backend(name: str) -> Any:
        raise error

    monkeypatch.setattr(controls, "get_backend", backend)
    said: list[str] = []
    assert look_for_reference(made_plan(), Watch(tell=said.append)) is None
    assert said == [f"note: the reference was not searched for a person: {error}"]


# --- looking ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `assess` is given."""
    calls: list[dict[str, Any]] = []
    plain = examine.assess

    def spy(track: PoseTrack | None, person: Person | None, **given: Any) -> Any:
        calls.append({"person": person, **given})
        return plain(track, person, **given)

    monkeypatch.setattr(examine, "assess", spy)
    return calls


def test_frames_are_compared_as_often_as_they_are_shown(fitted, compared) -> None:
    fitted(report(scale=0.25))
    examine.examine(made_plan(rows=[0, 0, 1, 4, 4, 4], person=someone()))
    assert compared[0]["counts"].tolist() == [2, 1, 3]
    assert compared[0]["aligned"] is None
    examine.examine(made_plan(align="global", person=someone()))
    assert compared[1]["aligned"] == 0.25


def test_what_cannot_be_had_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No detector, no alignment: nothing is refused before it is asked for."""

    def broken(*args: Any, **options: Any) -> None:
        raise PerceptionError("mediapipe is not installed")

    monkeypatch.setattr(examine, "perceive", broken)
    found = examine.examine(made_plan())
    assert (found.verdict, found.unknown) == ("unknown", "mediapipe is not installed")


def test_nobody_is_looked_for_beside_a_pose_video(monkeypatch: pytest.MonkeyPatch, compared) -> None:
    monkeypatch.setattr(controls, "get_backend", lambda name: pytest.fail("a detector was asked for"))
    assert examine.examine(made_plan(kind="pose")).verdict == "unknown"
    assert compared[0]["person"] is None


def test_a_preview_is_replaced_only_where_that_was_said(tmp_path: Path) -> None:
    path = write_png(tmp_path / "p.png", REFERENCE)
    plan = made_plan(request={"preview": path}, person=someone())
    with pytest.raises(ValueError, match="exists already"):
        examine.examine(plan)
    assert read_image(path).shape == REFERENCE.shape
    examine.examine(plan, overwrite=True)
    assert read_image(path).shape != REFERENCE.shape


def test_a_skeleton_stands_over_the_dimmed_image() -> None:
    pose = np.zeros((4, 4, 3), np.uint8)
    pose[1, 2] = (255, 0, 0)
    seen = examine.over(np.full((4, 4, 3), 200, np.uint8), pose)
    assert seen[1, 2].tolist() == [255, 0, 0]
    assert set(np.delete(seen.reshape(-1, 3), 6, axis=0).ravel().tolist()) == {90}


def test_the_preview_says_when_and_shows_those_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those in the video: repeated frames count. A crop that keeps all has no frame."""
    sheet: dict[str, Any] = {}
    plain = examine.contact_sheet
    monkeypatch.setattr(examine, "contact_sheet", lambda rows, **k: sheet.update(rows=rows, **k) or plain(rows, **k))
    plan = made_plan(rows=[0, 0, 0, 2, 2, 4])
    placed = place(plan.driving.track.select([0, 2, 4]), plan)
    examine.preview(plan, placed, None)
    assert sheet["captions"] == ["0.00 s", "0.30 s", "0.50 s"]
    np.testing.assert_array_equal(sheet["rows"]["reference"][0], REFERENCE)
    poses = some_pose_maps(plan, placed, np.array([0, 2, 4]), np.arange(3))
    expected = [examine.over(plan.fitted(), pose) for pose in poses]
    np.testing.assert_array_equal(sheet["rows"]["skeleton on reference"], expected)
    examine.preview(dataclasses.replace(plan, crop=OWN), placed, None)
    assert (sheet["rows"]["reference"][0][8:80, 4] == 255).all()


def test_pose_maps_of_some_frames_are_those_of_them() -> None:
    plan = made_plan()
    placed = Placed(plan.driving.track, Placement(OWN), None)
    each = list(some_pose_maps(plan, placed, np.arange(5), np.arange(5)))
    some = list(some_pose_maps(plan, placed, np.array([1, 4]), np.array([1, 4])))
    assert len(some) == 2
    assert not np.array_equal(each[1], each[4])
    np.testing.assert_array_equal(some, [each[1], each[4]])
