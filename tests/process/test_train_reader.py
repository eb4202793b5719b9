"""Training the reader of expressions, and the one that is shipped."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from xdyna.core.program import run
from xdyna.puppets import train_reader
from xdyna.puppets.expression import READINGS, SIDE, ExpressionReader
from xdyna.puppets.heldout import true_readings
from xdyna.puppets.train_reader import FOLDER, augment, blur, fit, measure, render_faces
from xdyna.puppets.world import SPLITS, render_clip


def test_faces_are_of_the_split() -> None:
    faces, readings = render_faces("validation", clips=2, seed=3)
    assert faces.shape == (2 * train_reader.FRAMES, 3, SIDE, SIDE)
    assert 0 <= faces.min() <= faces.max() <= 1
    seeds = np.random.default_rng([3, len("validation")]).choice(np.array(SPLITS["validation"]), (2, 3))
    clip = render_clip(*seeds[1].tolist(), frames=1, start=train_reader.STRIDE)
    assert (readings[train_reader.FRAMES + 1].numpy() == true_readings(clip)[0].astype(np.float32)).all()
    assert all(seed in SPLITS["validation"] for seed in seeds.ravel().tolist())


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.3])
def test_blur_equals_opencv(sigma: float) -> None:
    image = np.random.default_rng(0).random((SIDE, SIDE, 3)).astype(np.float32)
    ours = blur(torch.from_numpy(image).permute(2, 0, 1)[None], sigma=sigma)[0].permute(1, 2, 0).numpy()
    expected = cv2.GaussianBlur(image, (9, 9), sigma, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_augmentation_is_mild_and_follows_its_generator() -> None:
    faces, _ = render_faces("train", clips=2, seed=0)
    first, again, other = (augment(faces, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for made in (first, other):
        assert made.shape == faces.shape
        difference = (made - faces).abs().mean(dim=(1, 2, 3))
        assert difference.min() > 0.005
        assert difference.max() < 0.2


def test_accuracy_by_hand() -> None:
    """A reader that always says one half explains nothing of what varies about one half."""

    class Half(ExpressionReader):
        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            return torch.full((len(faces), 3), 0.5)

    readings = torch.tensor([[0.0, 0.4, 1.0], [1.0, 0.6, 0.0]])
    found = measure(Half(), torch.zeros(2, 3, SIDE, SIDE), readings)
    for name, error in zip(READINGS, (0.5, 0.1, 0.5), strict=True):
        assert found[name]["r2"] == pytest.approx(0, abs=1e-6)
        assert found[name]["mae"] == pytest.approx(error)


@pytest.mark.long
def test_training_learns_and_repeats() -> None:
    faces, readings = render_faces("train", clips=3, seed=0)
    state = torch.get_rng_state()
    reader, again = (fit(faces, readings, epochs=3, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(reader.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    before = measure(reader, faces, readings)
    after = measure(fit(faces, readings, epochs=200, seed=1), faces, readings)
    for name in READINGS:
        assert after[name]["r2"] > max(0.5, before[name]["r2"])


def test_program_writes_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--clips", "2", "--test-clips", "1", "--epochs", "1", "--out", str(tmp_path / "reader")]
    assert run(train_reader.main, arguments) == 0
    assert "mouth_open" in capsys.readouterr().out
    ExpressionReader.load(tmp_path / "reader")
    assert "on 16 faces" in (tmp_path / "reader" / "README.md").read_text()


def test_shipped_reader_reads_unknown_puppets() -> None:
    """On identities, motions and scenes of the test split, sharp and soft, at two sizes of images."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 200_000
    reader = ExpressionReader.load(FOLDER)
    faces, readings = render_faces("test", clips=24, seed=123)
    for images in (faces, blur(faces, sigma=1.0)):
        for name, row in measure(reader, images, readings).items():
            assert row["r2"] > 0.8, name
            assert row["mae"] < 0.12, name
    clip = render_clip(2_000_010, 2_000_011, 2_000_012, frames=16, stride=3, size=(320, 320))
    assert np.abs(reader.read(clip.frames, clip.face) - true_readings(clip)).mean() < 0.15
