"""How well image and driving video suit each other, in `scripts/infer.py`: said, stored, refused, drawn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.process.small import standing_figure
from xdyna.media.image import read_image
from xdyna.pipelines import model as networks


@pytest.fixture
def points(media: Path, tmp_path: Path) -> Path:
    """Keypoints of the person in the reference: the driving figure's own."""
    path = tmp_path / "ref.npz"
    standing_figure(frames=1).save(path)
    return path


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A driving figure that is far too small, in the upper left corner."""
    track = standing_figure(frames=7)
    path = tmp_path / "far.npz"
    dataclasses.replace(track, body=track.body * np.float32([0.15, 0.15, 1])).save(path)
    return path


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads networks fails."""

    def loaded(*args: object, **options: object) -> None:
        raise AssertionError("networks were loaded")

    monkeypatch.setattr(networks, "load_pipeline", loaded)


def test_a_run_says_and_keeps_it(infer, points, tmp_path, capsys):
    assert (
        infer("--ref-keypoints", points, "--size", "96x64", "--out", "a.mp4", "--steps", "1", "--crop", "person") == 0
    )
    assert "suitability: " in capsys.readouterr().out
    kept = json.loads((tmp_path / "a.run.json").read_text())["suitability"]
    assert kept["verdict"] in ("good", "warn")
    assert {entry["name"] for entry in kept["checks"]} >= {"presence", "scale", "place", "facing", "limbs", "crop"}
    assert kept["score"] == min(entry["score"] for entry in kept["checks"])


def test_nobody_in_the_reference_is_said_and_not_refused(infer, far, tmp_path, capsys):
    """Without --align nobody is needed there; whether a detector is installed or not."""
    assert infer("--drive", far, "--out", "a.mp4", "--steps", "1") == 0
    assert "suitability: unknown (nobody is known in the reference image)" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.run.json").read_text())["suitability"]["verdict"] == "unknown"


def test_pose_videos_are_unknown(infer, media, capsys):
    assert infer("--drive", media / "poses.mp4", "--drive-kind", "pose", "--steps", "1") == 0
    assert "suitability: unknown (the driving file is a pose video" in capsys.readouterr().out


def test_what_does_not_suit_is_refused_before_networks_are_loaded(infer, points, far, tmp_path, capsys, unloaded):
    given = ("--drive", far, "--ref-keypoints", points, "--size", "64x64", "--out", "a.mp4")
    assert infer(*given) == 1
    err = capsys.readouterr().err
    assert "image and driving video do not suit each other" in err
    assert "0.15 times as large as the one in the reference" in err
    assert "--align" in err
    assert "--force goes on all the same" in err
    assert not (tmp_path / "a.mp4").exists()


def test_force_goes_on(infer, points, far, tmp_path):
    given = ("--drive", far, "--ref-keypoints", points, "--size", "64x64", "--out", "a.mp4", "--steps", "1", "--force")
    assert infer(*given) == 0
    assert json.loads((tmp_path / "a.run.json").read_text())["suitability"]["verdict"] == "refuse"


def test_force_is_no_part_of_the_result(infer, points, tmp_path):
    """The same frames with it and without."""
    given = ("--ref-keypoints", points, "--size", "64x64", "--steps", "1", "--save", "ffv1")
    assert infer(*given, "--out", "a.mkv") == 0
    assert infer(*given, "--out", "b.mkv", "--force", "--preview", "p.png") == 0
    hashes = [json.loads((tmp_path / f"{name}.run.json").read_text())["outputs"][f"{name}.mkv"] for name in "ab"]
    assert hashes[0] == hashes[1]


def test_dry_run_tells_and_draws(infer, points, far, tmp_path, capsys, unloaded):
    """Nothing is refused, nothing written but the preview."""
    given = ("--dry-run", "--drive", far, "--ref-keypoints", points, "--size", "64x64", "--out", "a.mp4")
    assert infer(*given, "--preview", "p.png") == 0
    told = capsys.readouterr().out
    assert "suitability: 0.00 (refuse; weakest: scale)" in told
    assert "warning: scale 0.00: the driving person is 0.15 times" in told
    assert read_image(tmp_path / "p.png").std() > 20
    assert not (tmp_path / "a.mp4").exists()
    assert infer(*given, "--preview", "p.png") == 1
    assert "p.png exists already; choose another --preview" in capsys.readouterr().err
    assert infer(*given, "--preview", "p.png", "--overwrite") == 0


def test_the_preview_shows_what_will_drive(infer, points, tmp_path, monkeypatch, unloaded):
    """Reference with its skeleton and crop; the aligned skeletons over it."""
    from xdyna.pipelines import examine

    cells: dict[str, list[np.ndarray]] = {}
    original = examine.contact_sheet
    monkeypatch.setattr(examine, "contact_sheet", lambda rows, **k: cells.update(rows) or original(rows, **k))
    assert infer("--dry-run", "--align", "--ref-keypoints", points, "--size", "64x64", "--preview", "p.png") == 0
    assert list(cells) == ["reference", "skeleton on reference"]
    reference, drawn = cells["reference"][0], cells["skeleton on reference"]
    assert reference.shape == (96, 64, 3)
    assert len(drawn) == 6
    assert drawn[0].shape == (64, 64, 3)
    # The crop of 64 rows begins at row 16 (without face control): its frame is white there.
    assert (reference[16, 2:60] == 255).all()
    neck, ankle = standing_figure(frames=1).body[0, [1, 10], :2].astype(int)
    assert reference[neck[1], neck[0]].max() == 255
    assert drawn[0][neck[1] - 16, neck[0]].max() == 255  # neck: on the reference's neck
    assert drawn[0][min(ankle[1] - 16, 63)].max() < 255 or ankle[1] - 16 < 64


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (("--preview", "p.jpg"), 2, "expected a name that ends in .png"),
        (("--batch", "b.json", "--preview", "p.png"), 2, "leave out --ref, --drive"),
        (("--align", "bone"), 2, "expected one of none, auto, global, bones, face; did you mean 'bones'?"),
    ],
)
def test_wrong_usage(infer, given, code, said, capsys):
    Path("b.json").write_text("[]")
    assert infer(*given) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["global", "bones", "auto"])
def test_modes_reach_the_manifest(infer, points, tmp_path, mode):
    given = ("--align", mode, "--ref-keypoints", points, "--size", "96x64", "--steps", "1", "--out", "a.mp4")
    assert infer(*given) == 0
    kept = json.loads((tmp_path / "a.run.json").read_text())["alignment"]
    assert kept["mode"] == {"auto": "bones"}.get(mode, mode)
    assert bool(kept["ratios"]) == (mode != "global")


def test_face_needs_faces(infer, points, capsys):
    given = ("--align", "face", "--ref-keypoints", points, "--size", "96x64", "--steps", "1")
    assert infer(*given) == 1
    assert "align=face needs a face in the reference and in the driving video" in capsys.readouterr().err


def test_eval_forces(tmp_path):
    from xdyna.evaluation.generate import _request
    from xdyna.pipelines.outputs import OutputFiles

    assert _request(OutputFiles(tmp_path / "a.mp4"), {"id": "a", "ref": "r.png", "drive": "d.mp4"}).force
