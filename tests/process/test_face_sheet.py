"""The sheet of cross-identity faces, and what is measured on it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unit.preprocess.faces.real_faces import moved, portrait
from xdyna.core.errors import UsageError
from xdyna.media import VideoWriter, read_image
from xdyna.perception.face_mesh import FaceMesher
from xdyna.preprocess.faces.reenact import Portrait
from xdyna.preprocess.faces.sheet import (
    Clip,
    Transfer,
    main,
    measure_transfer,
    pooled_correlation,
    triples,
)
from xdyna.puppets import faces
from xdyna.puppets.faces import puppet_triples
from xdyna.puppets.world import render_clip

pytestmark = pytest.mark.usefixtures("detector")


def transfer(deviations: np.ndarray) -> Transfer:
    return Transfer("a", "b", deviations.shape[1], 0.0, {}, {}, 0.0, 0.0, 0.0, deviations)


def test_rendered_figures_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "sheet.png"
    assert faces.main(["--out", str(path), "--triples", "2", "--seed", "3"]) == 0
    assert read_image(path).shape[1] > 2 * 208
    assert "2 faces" in capsys.readouterr().out
    assert faces.main(["--out", str(path), "--triples", "1"]) == 0
    assert (tmp_path / "sheet_2.png").is_file(), "nothing is overwritten"


def test_puppets_keep_the_expression_and_change_the_figure():
    """The result of one row is the same bones and expression, another figure in another scene."""
    (driving, other, result), again = next(puppet_triples(1, 4)), next(puppet_triples(1, 4))
    for image, same in zip((driving, other, result), again, strict=True):
        np.testing.assert_array_equal(image, same)
    assert driving.shape != result.shape or (driving != result).mean() > 0.5


def test_usage(tmp_path: Path):
    out = str(tmp_path / "x.png")
    for given in (["--driving", "a.mp4"], []):
        with pytest.raises(UsageError, match="belong together"):
            main(["--out", out, *given])
    with pytest.raises(UsageError, match="are the same video"):
        main(["--out", out, "--driving", "a.mp4", "--other", "a.mp4"])
    with VideoWriter(tmp_path / "scene.mp4", fps=12, size=(96, 96)) as writer:
        for frame in render_clip(1, 1, 1, frames=3, size=(96, 96), kind="scene").frames:
            writer.write(frame)
    with pytest.raises(UsageError, match="no face is found"):
        main(["--out", out, "--driving", "a.mp4", "--other", str(tmp_path / "scene.mp4"), "--frames", "2"])


def test_pooling_weighs_all_deviations_alike():
    """Two clips of opposite correlation cancel; one alone is itself."""
    values = np.random.default_rng(0).normal(size=(20, 8))
    assert pooled_correlation([transfer(np.stack([values, 3 * values]))]) == pytest.approx(1)
    both = [transfer(np.stack([values, values])), transfer(np.stack([values, -values]))]
    assert pooled_correlation(both) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def mesher() -> FaceMesher:
    pytest.importorskip("mediapipe", reason="needs the perception extra")
    return FaceMesher()


@pytest.fixture(scope="module")
def lively(mesher: FaceMesher) -> tuple[Clip, Portrait]:
    """A face that is squeezed more and less: its coefficients follow, known up to reading."""
    person = portrait("admiral", mesher)
    shapes = [np.array([[1.0, 0, 0], [0, s, 300 * (1 - s)]]) for s in (0.85, 0.9, 0.95, 1.0, 1.05, 1.1)]
    frames, points = zip(*[moved(person.image, shape, person.landmarks) for shape in shapes], strict=True)
    return Clip("admiral", np.stack(frames), np.stack(points)), person


def test_the_same_clip_measures_as_the_same(lively: tuple[Clip, Portrait], mesher: FaceMesher):
    clip, person = lively
    found = measure_transfer(clip, clip, person, mesher)
    assert found.frames == 6
    assert found.pooled == pytest.approx(found.reading)
    assert found.pooled > 0.8
    assert found.to_driver == pytest.approx(0, abs=1e-9)
    assert "deviations" not in json.loads(json.dumps(found.row()))


def test_another_order_is_noticed(lively: tuple[Clip, Portrait], mesher: FaceMesher):
    clip, person = lively
    back = Clip("back", clip.frames[::-1], clip.landmarks[::-1])
    assert measure_transfer(clip, back, person, mesher).pooled < -0.5


def test_another_person_is_noticed(lively: tuple[Clip, Portrait], mesher: FaceMesher):
    clip, _ = lively
    other = portrait("astronaut", mesher)
    found = measure_transfer(clip, clip, other, mesher)
    assert found.to_other > 0.02 > found.to_driver


def test_too_few_faces(lively: tuple[Clip, Portrait], mesher: FaceMesher):
    clip, person = lively
    empty = Clip("empty", np.zeros_like(clip.frames), np.zeros_like(clip.landmarks))
    with pytest.raises(UsageError, match="0 frames show both faces"):
        measure_transfer(clip, empty, person, mesher)


def test_frames_of_the_sheet(lively: tuple[Clip, Portrait]):
    """Clips with several faces take turns; what is shown is the face, from the same frame."""
    clip, person = lively
    first = list(triples(clip, clip, person, count=2, turn=(0, 2)))
    second = list(triples(clip, clip, person, count=2, turn=(1, 2)))
    assert len(first) == len(second) == 2
    for driving, _, result in first + second:
        np.testing.assert_array_equal(driving, result)
    shown = {image.tobytes() for image, *_ in first + second}
    assert len(shown) == 4


@pytest.mark.slow
def test_expressions_of_real_dancers(shared_dir: Path, tmp_path: Path):
    """Expressions correlate, and the shape of the face is the other person's."""
    data, report = shared_dir / "data", tmp_path / "report.json"
    dancers = [str(data / "dance_1.mp4"), str(data / "dance_2.mp4")]
    arguments = ["--driving", *dancers, "--other", *dancers, "--out", str(tmp_path / "sheet.png"), "--frames", "40"]
    assert main([*arguments, "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["pooled"] > 0.8
    for clip in found["clips"]:
        assert clip["to_other"] < clip["to_driver"]
