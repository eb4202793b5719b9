"""Trains `xdyna.puppets.expression.ExpressionReader` on rendered faces (`scripts/puppets.py train-reader`).

It will read soft images as well as sharp ones: training blurs, coarsens and dirties the faces at random, and the
accuracy is measured on blurred ones, too.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from xdyna import __version__
from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.resources import weights_folder
from xdyna.puppets.expression import READINGS, SIDE, ExpressionReader, cut_face
from xdyna.puppets.heldout import true_readings
from xdyna.puppets.world import SPLITS, render_clip

FOLDER = weights_folder() / "puppet-expression"
FRAMES, STRIDE = 8, 5  # per rendered clip: far enough apart that expressions differ
BATCH = 256
LEARNING_RATE = 2e-3


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py train-reader`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    train = render_faces("train", clips=args.clips, seed=args.seed)
    reader = fit(*train, epochs=args.epochs, seed=args.seed)
    test = render_faces("test", clips=args.test_clips, seed=args.seed)
    accuracy = {"sharp": measure(reader, *test), "blurred": measure(reader, blur(test[0], sigma=1.0), test[1])}
    facts = {
        "version": __version__,
        "seed": args.seed,
        "train_faces": len(train[0]),
        "test_faces": len(test[0]),
        "epochs": args.epochs,
        "accuracy": accuracy,
    }
    reader.save(args.out, facts=facts)
    with atomic_output(args.out / "README.md", overwrite=True) as path:
        path.write_text(_card(reader, facts, accuracy))
    print(f"{_table(accuracy)}\n\nwritten to {args.out}")
    return 0


def render_faces(split: str, *, clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Faces of random puppets.

    Args:
        split: "train", "validation" or "test".
        clips: how many identities with a motion and a scene each.
        seed: of the choice.

    Returns:
        faces: float32 (N, 3, 32, 32) in [0, 1]; readings: float32 (N, 3).
    """
    seeds = np.random.default_rng([seed, len(split)]).choice(np.array(SPLITS[split]), (clips, 3))
    faces, readings = [], []
    for identity, motion, scene in tqdm(seeds.tolist(), desc=f"rendering {split} faces", unit="clip"):
        clip = render_clip(identity, motion, scene, frames=FRAMES, stride=STRIDE)
        faces += [cut_face(frame, points) for frame, points in zip(clip.frames, clip.face, strict=True)]
        readings.append(true_readings(clip))
    pixels = rearrange(torch.from_numpy(np.stack(faces)), "n h w c -> n c h w").float() / 255
    return pixels, torch.from_numpy(np.concatenate(readings)).float()


def blur(faces: Tensor, *, sigma: float) -> Tensor:
    """Gaussian blur of (N, 3, H, W) faces; sigma in px."""
    places = torch.arange(-4, 5, dtype=faces.dtype, device=faces.device)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = faces.shape[1]
    padded = F.pad(faces, (4, 4, 4, 4), mode="replicate")
    across = F.conv2d(padded, kernel.expand(channels, 1, 1, 9), groups=channels)
    return F.conv2d(across, rearrange(kernel, "k -> 1 1 k 1").expand(channels, 1, 9, 1), groups=channels)


def augment(faces: Tensor, generator: torch.Generator) -> Tensor:
    """Make faces as soft, coarse, shifted and noisy as generated ones may be.

    Args:
        faces: (N, 3, 32, 32) in [0, 1].
        generator: source of all randomness.

    Returns:
        Tensor: the same shape; values may leave [0, 1] a little, as noise does.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    count = len(faces)
    angle, scale = uniform(-0.08, 0.08, count), uniform(0.93, 1.08, count)
    shift = uniform(-1.5, 1.5, count, 2) * 2 / SIDE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(faces.shape), align_corners=False)
    faces = F.grid_sample(faces, grid, padding_mode="border", align_corners=False)
    return dirtied(faces, generator, blurred=0.4, sigma=1.3)


def dirtied(images: Tensor, generator: torch.Generator, *, blurred: float, sigma: float) -> Tensor:
    """Blur a part of the images, coarsen a quarter, and change colours and noise of all, as generated ones may be.

    Args:
        images: (N, 3, H, H) in [0, 1].
        generator: source of all randomness.
        blurred: share that is blurred.
        sigma: of the strongest blur, px.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    count, side = len(images), images.shape[-1]
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    soft = blur(images, sigma=float(uniform(0.4, sigma, 1)))
    coarse = F.interpolate(F.interpolate(images, scale_factor=0.5, mode="area"), size=side, mode="bilinear")
    images = torch.where(kind < blurred, soft, torch.where(kind > 0.75, coarse, images))
    gain, offset = uniform(0.85, 1.15, count, 3, 1, 1), uniform(-0.06, 0.06, count, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 0.05, count, 1, 1, 1)
    return images * gain + offset + noise


def fit(faces: Tensor, readings: Tensor, *, epochs: int, seed: int) -> ExpressionReader:
    """Train a reader by the mean squared error, with AdamW and one cosine cycle.

    Args:
        faces: (N, 3, 32, 32) in [0, 1].
        readings: (N, 3).
        epochs: passes over the faces.
        seed: of initial weights, order and augmentation.

    Returns:
        ExpressionReader: in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = ExpressionReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    steps = max(1, epochs * (len(faces) // min(BATCH, len(faces))))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    with tqdm(total=steps, desc="training", unit="step") as bar:
        while schedule.last_epoch < steps:
            order = torch.randperm(len(faces), generator=generator)
            for rows in order.split(BATCH):
                if schedule.last_epoch >= steps or len(rows) < min(BATCH, len(faces)):
                    break
                loss = F.mse_loss(reader(augment(faces[rows], generator)), readings[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    return reader.eval()


@torch.no_grad()
def measure(reader: ExpressionReader, faces: Tensor, readings: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy of a reader.

    Args:
        reader: the network.
        faces: (N, 3, 32, 32) in [0, 1].
        readings: (N, 3), the truth.

    Returns:
        For each reading "r2" (share of the variance that is explained) and "mae" (mean absolute error).
    """
    read = torch.cat([reader(part) for part in faces.split(1024)]).clamp(0, 1)
    error, spread = (read - readings).double(), (readings - readings.mean(0)).double()
    r2 = 1 - error.square().sum(0) / spread.square().sum(0)
    mae = error.abs().mean(0)
    return {name: {"r2": float(r2[k]), "mae": float(mae[k])} for k, name in enumerate(READINGS)}


def _table(accuracy: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| reading | " + " | ".join(f"R2 {kind} | MAE {kind}" for kind in accuracy) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(accuracy))
    for name in READINGS:
        values = [f"{found[name]['r2']:.3f} | {found[name]['mae']:.3f}" for found in accuracy.values()]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def _card(reader: ExpressionReader, facts: dict[str, object], accuracy: dict[str, dict[str, dict[str, float]]]) -> str:
    size = sum(parameter.numel() for parameter in reader.parameters())
    return f"""# puppet-expression

A small network ({size:,} parameters) that reads mouth and eye opening (0 shut, 1 wide open) from the pixels of a
puppet's face, cut out upright to {SIDE} x {SIDE} px. `scripts/puppets.py report` compares generated faces with the
truth by it. Code: `xdyna/puppets/expression.py`. It knows puppets only.

Trained by `python scripts/puppets.py train-reader` on {facts["train_faces"]:,} faces of the puppet world's training
split, blurred, coarsened, shifted and dirtied at random. Accuracy on {facts["test_faces"]:,} faces of
identities, motions and
scenes that were not trained on; "blurred" with a Gaussian of sigma 1 px, as generated faces may be:

{_table(accuracy)}
"""


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="train_reader.py", description="Train the reader of puppets' expressions.")
    p.add_argument("--clips", type=int, default=2000, help="rendered clips to train on (%(default)s)")
    p.add_argument("--test-clips", type=int, default=300, help="rendered clips to measure on (%(default)s)")
    p.add_argument("--epochs", type=int, default=30, help="passes over the faces (%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=output_path, default=FOLDER, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
