"""Training the puppet extractors, and those that are shipped."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from xdyna.core.program import run
from xdyna.evaluation.masks import BACKGROUND, FIGURE, FULL
from xdyna.puppets import extractor_clips, train_extractors
from xdyna.puppets.extractor_clips import (
    MOTIONS,
    SCENES,
    VIEW_FRAMES,
    VIEWS,
    Arrays,
    dynamics_clips,
    frozen,
    identity_heads,
    region_of,
    shuffle_order,
)
from xdyna.puppets.networks import CLIP_FRAMES, FACE_SIDE, PuppetDynamics, PuppetIdentity
from xdyna.puppets.train_extractors import (
    DYNAMICS,
    IDENTITY,
    augment_heads,
    dynamics_batch,
    equal_error_rate,
    fit,
    measure_dynamics,
    measure_identity,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rendered")


@pytest.fixture(scope="module")
def clips(folder: Path) -> Arrays:
    """Of the four static scenes and then the first two that move."""
    return dynamics_clips("validation", clips=6, seed=5, folder=folder)


def test_clips_are_what_they_say(clips: Arrays) -> None:
    assert clips["full"].shape == (6, CLIP_FRAMES, 64, 64, 3)
    assert [SCENES[k] for k in clips["scene_kind"]] == ["static"] * 4 + ["fire", "waterfall"]
    assert [MOTIONS[k] for k in clips["motion_kind"]] == list(MOTIONS[1:7])
    inside, outside = clips["share"] == 255, clips["share"] == 0
    assert inside.any()
    assert outside.any()
    assert (clips["figure"][outside] == 0).all()
    assert (clips["figure"][inside] == clips["full"][inside]).all()
    # Far from the figure the clip shows its scene.
    assert np.abs(clips["full"][outside].astype(int) - clips["scene"][outside]).mean() < 1
    for k in range(6):
        halves = region_of(clips, k, FIGURE).astype(int) + region_of(clips, k, BACKGROUND)
        assert np.array_equal(halves, region_of(clips, k, FULL))


def test_files_are_used_again_and_damaged_ones_made_again(
    clips: Arrays, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(extractor_clips, "render_clip", never)
    again = dynamics_clips("validation", clips=6, seed=5, folder=folder)
    assert all(np.array_equal(again[name], clips[name]) for name in clips)
    (file,) = folder.glob("dynamics-validation-5-*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssertionError, match="rendered again"):
        dynamics_clips("validation", clips=6, seed=5, folder=folder)
    file.write_bytes(whole)


def test_frozen_scenes_stand_still_behind_a_moving_figure(clips: Arrays) -> None:
    fire, onset = 4, 8
    made, truth = frozen(clips, fire, FULL, onset=onset), clips["full"][fire]
    assert np.array_equal(made[:onset], truth[:onset])
    free = (clips["share"][fire, onset:] == 0).all(axis=0)  # the figure never stands there
    assert (made[onset:, free] == made[onset, free]).all()
    assert (truth[onset + 1 :, free] != truth[onset, free]).any()
    inside = clips["share"][fire, onset:] == 255
    assert np.abs(made[onset:][inside].astype(int) - truth[onset:][inside]).max() <= 1
    behind = frozen(clips, fire, BACKGROUND, onset=0)
    assert (behind[clips["share"][fire] == 255] == 0).all()


@pytest.mark.parametrize("window", [2, 4, 8, 16])
def test_frames_change_places_inside_windows(window: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = shuffle_order(window, rng)
        assert sorted(order.tolist()) == list(range(CLIP_FRAMES))
        assert (order // window == np.arange(CLIP_FRAMES) // window).all()
        assert (order != np.arange(CLIP_FRAMES)).any()


@pytest.mark.long
def test_batches_say_what_they_are(clips: Arrays) -> None:
    pixels, targets = dynamics_batch(clips, np.tile(np.arange(6), 40), np.random.default_rng(0))
    assert pixels.shape == (240, 3, CLIP_FRAMES, 64, 64)
    assert 0 <= pixels.min() <= pixels.max() <= 1.16
    scene, motion = targets.scene.sum(1), targets.motion.sum(1)
    assert set(scene.tolist()) == {0.0, 1.0} == set(motion.tolist())
    still = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().amax(dim=(1, 2, 3, 4)) < 1e-6
    called_still = targets.motion[:, MOTIONS.index("still")] == 1
    assert called_still.any()
    assert still[called_still].all()
    assert (targets.scene[called_still, SCENES.index("static")][scene[called_still] > 0] == 1).all()
    assert targets.order[called_still].isnan().all()
    known = targets.order[~targets.order.isnan()]
    assert set(known.tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    again, _ = dynamics_batch(clips, np.tile(np.arange(6), 40), np.random.default_rng(0))
    assert torch.equal(pixels, again)


def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    def train(state: Path | None, *, stop: bool = False) -> nn.Linear:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def losses(rng: np.random.Generator) -> Iterator[torch.Tensor]:
            for step in range(4):
                if stop and state is not None and state.is_file() and step == 2:
                    raise KeyboardInterrupt
                yield model(torch.from_numpy(rng.standard_normal((5, 3))).float()).square().mean()

        fit(model, losses, epochs=3, steps=4, rate=1e-2, seed=1, state=state)
        return model

    whole = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "state.pt", stop=True)
    resumed = train(tmp_path / "state.pt")
    assert torch.equal(whole.weight, resumed.weight)
    with pytest.raises(ValueError, match="another length"):
        fit(nn.Linear(3, 1), lambda rng: iter(()), epochs=9, steps=4, rate=1e-2, seed=1, state=tmp_path / "state.pt")


def test_heads_are_changed_a_little() -> None:
    heads = torch.rand(4, 3, FACE_SIDE // 4, FACE_SIDE // 4, generator=torch.Generator().manual_seed(0))
    heads = nn.functional.interpolate(heads, size=FACE_SIDE, mode="bilinear")
    first, again, other = (augment_heads(heads, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == heads.shape
    assert 0.005 < (first - heads).abs().mean() < 0.2


def test_equal_error_rate_by_hand() -> None:
    assert equal_error_rate(np.array([0.6, 0.7, 0.8]), np.array([0.1, 0.2, 0.3])) == 0
    # One of four of each kind is on the wrong side of every threshold between them.
    assert equal_error_rate(np.array([0.2, 0.7, 0.8, 0.9]), np.array([0.0, 0.05, 0.1, 0.6])) == 0.25
    rng = np.random.default_rng(0)
    same, other = np.sort(rng.normal(1, 1, 500)), np.sort(rng.normal(-1, 1, 800))
    assert equal_error_rate(same, other) == pytest.approx(0.1587, abs=0.02)  # of unit Gaussians: Phi(-1)


def test_a_perfect_recogniser_makes_no_errors() -> None:
    class Perfect(PuppetIdentity):
        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot((faces[:, 0, 0, 0] * 255).round().long(), 4).float()

    heads = np.zeros((4, VIEWS, VIEW_FRAMES, FACE_SIDE, FACE_SIDE, 3), np.uint8)
    heads += np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1, 1, 1)
    assert measure_identity(Perfect(), heads, sigma=0) == {"eer": 0, "tar": 1, "same": 1, "other": 0}


def test_program_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"--clips": 3, "--test-clips": 5, "--epochs": 1, "--identities": 3, "--test-identities": 2}
    numbers = [str(part) for pair in {**sizes, "--identity-epochs": 1}.items() for part in pair]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    assert run(train_extractors.main, ["all", *numbers, *folders]) == 0
    assert "equal error rate" in capsys.readouterr().out
    PuppetIdentity.load(tmp_path / "puppet-identity")
    assert PuppetDynamics.load(tmp_path / "puppet-dynamics").scenes == SCENES
    assert "on 3 clips" in (tmp_path / "puppet-dynamics" / "README.md").read_text()


def test_shipped_networks_are_small_and_say_what_was_measured() -> None:
    assert sum(path.stat().st_size for folder in (DYNAMICS, IDENTITY) for path in folder.iterdir()) <= 3_000_000
    for folder in (DYNAMICS, IDENTITY):
        assert json.loads((folder / "config.json").read_text())["accuracy"]
        assert (folder / "README.md").is_file()


@pytest.mark.slow
def test_shipped_dynamics_on_unknown_puppets(tmp_path: Path) -> None:
    """Other clips of the test split than those in the card."""
    found = measure_dynamics(
        PuppetDynamics.load(DYNAMICS), dynamics_clips("test", clips=84, seed=77, folder=tmp_path), seed=1
    )
    claimed = json.loads((DYNAMICS / "config.json").read_text())["accuracy"]
    for name, value in found.items():
        assert value > claimed[name] - 0.12, name


@pytest.mark.long
def test_shipped_identity_on_unknown_puppets(tmp_path: Path) -> None:
    """Other identities of the test split than those in the card."""
    heads = identity_heads("test", identities=24, seed=77, folder=tmp_path)["heads"]
    network = PuppetIdentity.load(IDENTITY)
    for sigma in (0, 1.0):
        found = measure_identity(network, heads, sigma=sigma)
        assert found["eer"] < 0.03
        assert found["same"] > found["other"] + 0.5
