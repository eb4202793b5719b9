"""Trains the networks of `xdyna.puppets.networks` on rendered puppets (`scripts/puppets.py train-extractors`).

Rendered clips and the state after every epoch are kept, so that an interrupted run goes on and ends with the same
weights.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from xdyna import __version__
from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.resources import weights_folder
from xdyna.evaluation.masks import BACKGROUND, FIGURE, FULL
from xdyna.puppets.extractor_cards import dynamics_card, identity_card
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
from xdyna.puppets.networks import CLIP_FRAMES, FACE_SIDE, STATIC, STILL, PuppetDynamics, PuppetIdentity
from xdyna.puppets.train_reader import blur

DYNAMICS, IDENTITY = weights_folder() / "puppet-dynamics", weights_folder() / "puppet-identity"
WORK = Path("runs") / "extractors"
WINDOWS = (2, 4, 8, 16)  # frames that are shuffled among themselves
SHIFT = 4  # px, of clips
SCALE, MARGIN = 16.0, 0.15  # of the cosine softmax

Losses = Callable[[np.random.Generator], Iterator[Tensor]]
"""The losses of one epoch, one per step, computed as they are asked for."""


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py train-extractors`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    if args.which in ("dynamics", "all"):
        _train_dynamics(args)
    if args.which in ("identity", "all"):
        _train_identity(args)
    return 0


def _train_dynamics(args: argparse.Namespace) -> None:
    rendered = args.work / "rendered"
    train = dynamics_clips("train", clips=args.clips, seed=args.seed, folder=rendered)
    network = fit_dynamics(train, epochs=args.epochs, seed=args.seed, state=args.work / "dynamics.pt")
    facts = {"version": __version__, "seed": args.seed, "train_clips": args.clips, "epochs": args.epochs}
    network.save(args.out / DYNAMICS.name, facts=facts)
    network = PuppetDynamics.load(args.out / DYNAMICS.name)  # what is shipped is what is measured
    test = dynamics_clips("test", clips=args.test_clips, seed=args.seed, folder=rendered)
    accuracy = measure_dynamics(network, test, seed=args.seed)
    facts |= {"test_clips": args.test_clips, "accuracy": accuracy}
    network.save(args.out / DYNAMICS.name, facts=facts)
    _finish(args.out / DYNAMICS.name, dynamics_card(network, facts, accuracy))


def _train_identity(args: argparse.Namespace) -> None:
    rendered = args.work / "rendered"
    heads = identity_heads("train", identities=args.identities, seed=args.seed, folder=rendered)["heads"]
    network = fit_identity(heads, epochs=args.identity_epochs, seed=args.seed, state=args.work / "identity.pt")
    facts = {
        "version": __version__,
        "seed": args.seed,
        "train_identities": args.identities,
        "epochs": args.identity_epochs,
    }
    network.save(args.out / IDENTITY.name, facts=facts)
    network = PuppetIdentity.load(args.out / IDENTITY.name)
    test = identity_heads("test", identities=args.test_identities, seed=args.seed, folder=rendered)["heads"]
    accuracy = {kind: measure_identity(network, test, sigma=sigma) for kind, sigma in (("sharp", 0), ("blurred", 1.0))}
    facts |= {"test_identities": args.test_identities, "accuracy": accuracy}
    network.save(args.out / IDENTITY.name, facts=facts)
    _finish(args.out / IDENTITY.name, identity_card(network, facts, accuracy))


def _finish(folder: Path, card: str) -> None:
    with atomic_output(folder / "README.md", overwrite=True) as path:
        path.write_text(card)
    print(f"{card}\nwritten to {folder}")


def fit(
    model: nn.Module, losses: Losses, *, epochs: int, steps: int, rate: float, seed: int, state: Path | None
) -> None:
    """Train with AdamW and one cosine cycle.

    Args:
        model: trained in place; left in evaluation mode.
        losses: of one epoch, `steps` of them.
        epochs: how many.
        steps: per epoch.
        rate: highest learning rate.
        seed: of order and augmentation.
        state: file that is written after every epoch and that a run of equal length goes on from; None: none.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps + 1, pct_start=0.1)
    first = _resume(state, model, optimizer, schedule)
    model.train()
    with tqdm(total=epochs * steps, initial=first * steps, desc="training", unit="step") as bar:
        for epoch in range(first, epochs):
            for loss in losses(np.random.default_rng([seed, epoch])):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
            if state is not None:
                parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
                stored = {name: part.state_dict() for name, part in parts.items()}
                with atomic_output(state, overwrite=True) as path:
                    torch.save({**stored, "epoch": epoch + 1}, path)
    model.eval()


def _resume(
    state: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
) -> int:
    """Epochs that are done already."""
    if state is None or not state.is_file():
        return 0
    stored = torch.load(state, weights_only=True)
    if stored["schedule"]["total_steps"] != schedule.total_steps:
        raise ValueError(f"{state} is of a run of another length; remove it or choose another --work")
    model.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    schedule.load_state_dict(stored["schedule"])
    return int(stored["epoch"])


def fit_dynamics(
    clips: Arrays, *, epochs: int, seed: int, batch: int = 32, state: Path | None = None
) -> PuppetDynamics:
    """Train on kinds of scenes and motions and on the order of frames.

    Args:
        clips: of `dynamics_clips`.
        epochs: passes over the clips.
        seed: of everything.
        batch: clips per step.
        state: see `fit`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PuppetDynamics(SCENES, MOTIONS)
    steps = max(1, len(clips["full"]) // batch)

    def losses(rng: np.random.Generator) -> Iterator[Tensor]:
        order = rng.permutation(len(clips["full"]))
        for numbers in np.array_split(order, steps):
            pixels, targets = dynamics_batch(clips, numbers, rng)
            answers = network.answers(network(pixels))
            losses = [_soft_cross_entropy(answers.scene, targets.scene)]
            losses.append(_soft_cross_entropy(answers.motion, targets.motion))
            known = ~targets.order.isnan()
            order_loss = F.binary_cross_entropy_with_logits(answers.order[known], targets.order[known], reduction="sum")
            yield sum(losses) + 0.5 * order_loss / len(numbers)  # type: ignore[misc]

    fit(network, losses, epochs=epochs, steps=steps, rate=4e-3, seed=seed, state=state)
    return network


class Targets:
    """What a batch of clips is.

    Attributes:
        scene: (B, kinds) shares; all 0 where the scene is not seen.
        motion: (B, kinds) shares; all 0 where the figure is not seen or the order is lost.
        order: (B,) 1 in order, 0 shuffled; NaN where that cannot be told.
    """

    def __init__(self, count: int) -> None:
        self.scene = torch.zeros(count, len(SCENES))
        self.motion = torch.zeros(count, len(MOTIONS))
        self.order = torch.full((count,), float("nan"))


def dynamics_batch(clips: Arrays, numbers: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Targets]:
    """Clips as they are, halved, frozen, stilled or shuffled, and changed a little in place and colour.

    Args:
        clips: of `dynamics_clips`.
        numbers: which of them.
        rng: source of all randomness.

    Returns:
        (B, 3, T, 64, 64) in about [0, 1], and what they are.
    """
    targets, made = Targets(len(numbers)), []
    for row, number in enumerate(numbers.tolist()):
        made.append(_augment(_treated(clips, number, targets, row, rng), rng))
    return rearrange(torch.from_numpy(np.stack(made)), "b t h w c -> b c t h w"), targets


def _treated(clips: Arrays, number: int, targets: Targets, row: int, rng: np.random.Generator) -> np.ndarray:
    region = str(rng.choice([FULL, FIGURE, BACKGROUND], p=[0.5, 0.25, 0.25]))
    treatment = str(rng.choice(["none", "frozen", "still", "shuffled"], p=[0.5, 0.2, 0.1, 0.2]))
    scene, motion = int(clips["scene_kind"][number]), int(clips["motion_kind"][number])
    moves = SCENES[scene] != STATIC
    if treatment == "frozen" and (region == FIGURE or not moves):
        treatment = "none"
    frames, lively, order, keeps_motion = region_of(clips, number, region), float(moves), 1.0, True
    if treatment == "frozen":
        onset = int(rng.choice([0, 0, 4, 8, 12]))
        frames, lively = frozen(clips, number, region, onset=onset), onset / CLIP_FRAMES
    elif treatment == "still":
        frames = np.repeat(frames[rng.integers(CLIP_FRAMES)][None], CLIP_FRAMES, axis=0)
        lively, motion, order = 0.0, MOTIONS.index(STILL), float("nan")
    elif treatment == "shuffled":
        window = int(rng.choice(WINDOWS))
        frames, order = frames[shuffle_order(window, rng)], 1 - np.log2(window) / np.log2(CLIP_FRAMES)
        keeps_motion = window <= 2
    if region != FIGURE:
        targets.scene[row, scene] += lively
        targets.scene[row, SCENES.index(STATIC)] += 1 - lively
    if region != BACKGROUND and keeps_motion:
        targets.motion[row, motion] = 1
    if region != BACKGROUND or moves:
        targets.order[row] = order
    return frames


def _augment(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift, mirror and tint a clip: uint8 (T, 64, 64, 3) -> float32. What is black stays black."""
    if rng.uniform() < 0.5:
        frames = frames[:, :, ::-1]
    down, right = rng.integers(2 * SHIFT + 1, size=2)
    wide = np.pad(frames, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    moved = wide[:, down : down + frames.shape[1], right : right + frames.shape[2]]
    return np.asarray(moved * (rng.uniform(0.85, 1.15, 3) / 255).astype(np.float32))


def _soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    return -(shares * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


@torch.no_grad()
def measure_dynamics(network: PuppetDynamics, clips: Arrays, *, seed: int) -> dict[str, float]:
    """Accuracies, each the share of clips that are told right.

    Args:
        network: in evaluation mode.
        clips: of `dynamics_clips`.
        seed: of the shuffling.

    Returns:
        "scene" and "scene_background" of `SCENES`; "frozen": moving scenes that stand still from the first frame on
        called static; "motion" and "motion_figure" of `MOTIONS`; "still": repeated frames called still; "order": mean
        of the shares of natural clips called ordered and of clips shuffled throughout called shuffled.
    """
    rng, count = np.random.default_rng([seed, 7]), len(clips["full"])
    scene, motion = (torch.from_numpy(clips[f"{name}_kind"]) for name in ("scene", "motion"))
    moving = np.nonzero(clips["scene_kind"] != SCENES.index(STATIC))[0]

    def told(make: Callable[[int], np.ndarray], numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        features = torch.from_numpy(np.concatenate([network.features(make(k)) for k in numbers]))
        answers = network.answers(features)
        return answers.scene.argmax(1), answers.motion.argmax(1), answers.order > 0

    every = range(count)
    full = told(lambda k: region_of(clips, k, FULL), every)
    behind = told(lambda k: region_of(clips, k, BACKGROUND), every)
    figure = told(lambda k: region_of(clips, k, FIGURE), every)
    ice = told(lambda k: frozen(clips, k, FULL, onset=0), moving.tolist())
    still = told(lambda k: np.repeat(clips["full"][k, :1], CLIP_FRAMES, axis=0), every)
    mixed = told(lambda k: clips["full"][k][shuffle_order(CLIP_FRAMES, rng)], every)
    right = {
        "scene": full[0] == scene,
        "scene_background": behind[0] == scene,
        "frozen": ice[0] == SCENES.index(STATIC),
        "motion": full[1] == motion,
        "motion_figure": figure[1] == motion,
        "still": still[1] == MOTIONS.index(STILL),
        "order": torch.cat([full[2], ~mixed[2]]),
    }
    return {name: float(values.float().mean()) for name, values in right.items()}


def fit_identity(
    heads: np.ndarray, *, epochs: int, seed: int, batch: int = 128, state: Path | None = None
) -> PuppetIdentity:
    """Train by a cosine softmax with a margin over all identities.

    Args:
        heads: uint8 (identities, VIEWS, VIEW_FRAMES, 48, 48, 3).
        epochs: passes over the heads.
        seed: of everything.
        batch: heads per step.
        state: see `fit`.

    Source: Wang et al., "CosFace", arXiv 1801.09414, eq. 4.
    """
    faces = rearrange(torch.from_numpy(heads), "i v t h w c -> (i v t) c h w")
    whose = torch.arange(len(heads)).repeat_interleave(VIEWS * VIEW_FRAMES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PuppetIdentity()
        model = nn.ModuleDict({"network": network, "people": nn.Linear(network.dim, len(heads), bias=False)})
    people = model["people"]
    steps = max(1, len(faces) // batch)

    def losses(rng: np.random.Generator) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        for rows in np.array_split(rng.permutation(len(faces)), steps):
            found = network(augment_heads(faces[rows].float() / 255, generator))
            cosine = F.linear(found, F.normalize(people.weight, dim=1))  # type: ignore[arg-type]
            margin = MARGIN * F.one_hot(whose[rows], len(heads))
            yield F.cross_entropy(SCALE * (cosine - margin), whose[rows])

    fit(model, losses, epochs=epochs, steps=steps, rate=3e-3, seed=seed, state=state)
    return network.eval()


def augment_heads(heads: Tensor, generator: torch.Generator) -> Tensor:
    """Make heads as soft, shifted and noisy as generated ones may be, and tint them a little.

    Args:
        heads: (N, 3, 48, 48) in [0, 1].
        generator: source of all randomness.

    Returns:
        Tensor: the same shape; values may leave [0, 1] a little.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    count = len(heads)
    angle, scale, shift = uniform(-0.1, 0.1, count), uniform(0.9, 1.1, count), uniform(-2, 2, count, 2) * 2 / FACE_SIDE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(heads.shape), align_corners=False)
    heads = F.grid_sample(heads, grid, padding_mode="border", align_corners=False)
    soft = blur(heads, sigma=float(uniform(0.4, 2.0, 1)))
    heads = torch.where((uniform(0, 1, count) < 0.4)[:, None, None, None], soft, heads)
    gain, offset = uniform(0.93, 1.07, count, 3, 1, 1), uniform(-0.03, 0.03, count, 3, 1, 1)
    noise = torch.randn(heads.shape, generator=generator) * uniform(0, 0.05, count, 1, 1, 1)
    return heads * gain + offset + noise


@torch.no_grad()
def measure_identity(network: PuppetIdentity, heads: np.ndarray, *, sigma: float) -> dict[str, float]:
    """Verification: does the cosine of two heads, from two clips of other motions and scenes, tell one from two people.

    Args:
        network: in evaluation mode.
        heads: uint8 (identities, 2, VIEW_FRAMES, 48, 48, 3), at least two identities.
        sigma: of a Gaussian that blurs them first, px; 0: none.

    Returns:
        "eer": equal error rate; "tar": share of pairs of one person accepted where 0.1 % of pairs of two are; "same",
        "other": mean cosines.
    """
    found = []
    for view in range(2):
        pixels = rearrange(torch.from_numpy(heads[:, view]), "i t h w c -> (i t) c h w").float() / 255
        parts = (blur(part, sigma=sigma) if sigma else part for part in pixels.split(256))
        found.append(torch.cat([network(part) for part in parts]).double().numpy())
    cosine = found[0] @ found[1].T
    whose = np.arange(len(heads)).repeat(heads.shape[2])
    one = whose[:, None] == whose[None]
    same, other = np.sort(cosine[one]), np.sort(cosine[~one])
    return {
        "eer": equal_error_rate(same, other),
        "tar": float((same > np.quantile(other, 0.999)).mean()),
        "same": float(same.mean()),
        "other": float(other.mean()),
    }


def equal_error_rate(same: np.ndarray, other: np.ndarray) -> float:
    """The error rate at the threshold where as large a share of pairs of one person is refused as of two is accepted.

    Args:
        same: scores of pairs of one person, ascending.
        other: of pairs of two, ascending.
    """
    thresholds = np.concatenate([same, other])
    refused = np.searchsorted(same, thresholds, side="left") / len(same)
    accepted = 1 - np.searchsorted(other, thresholds, side="left") / len(other)
    best = int(np.argmin(np.abs(refused - accepted)))
    return float((refused[best] + accepted[best]) / 2)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="train_extractors.py", description="Train the two networks that metrics of the puppet world look through."
    )
    p.add_argument("which", nargs="?", choices=("dynamics", "identity", "all"), default="all")
    p.add_argument("--clips", type=int, default=1500, help="rendered clips to train puppet-dynamics on (%(default)s)")
    p.add_argument("--test-clips", type=int, default=336, help="rendered clips to measure it on (%(default)s)")
    p.add_argument("--epochs", type=int, default=30, help="passes over the clips (%(default)s)")
    p.add_argument("--identities", type=int, default=1200, help="to train puppet-identity on (%(default)s)")
    p.add_argument("--test-identities", type=int, default=400, help="to measure it on (%(default)s)")
    p.add_argument("--identity-epochs", type=int, default=12, help="passes over the heads (%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--work", type=output_path, default=WORK, metavar="FOLDER", help="rendered clips, state (%(default)s)"
    )
    p.add_argument(
        "--out", type=output_path, default=weights_folder(), metavar="FOLDER", help="where to write (%(default)s)"
    )
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
