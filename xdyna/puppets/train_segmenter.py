"""Trains `xdyna.puppets.segmenter.PuppetSegmenter` on rendered puppets (`scripts/puppets.py train-segmenter`).

Training blurs, coarsens and dirties the images, as generated ones may be; the accuracy is measured on blurred ones,
too.
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
from xdyna.puppets.segmenter import PuppetSegmenter
from xdyna.puppets.train_reader import blur, dirtied
from xdyna.puppets.world import SPLITS, render_clip

FOLDER = weights_folder() / "puppet-segmenter"
FRAMES, STRIDE, SIDE = 4, 11, 128  # per rendered clip; px
BATCH, LEARNING_RATE = 16, 3e-3


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py train-segmenter`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    train = render_figures("train", clips=args.clips, seed=args.seed)
    network = fit(*train, steps=args.steps, seed=args.seed)
    facts: dict[str, object] = {"version": __version__, "seed": args.seed, "train_images": len(train[0])}
    facts["steps"] = args.steps
    network.save(args.out, facts=facts)
    network = PuppetSegmenter.load(args.out)  # what is shipped is what is measured
    images, masks = render_figures("test", clips=args.test_clips, seed=args.seed)
    overlap = {"sharp": measure(network, images, masks), "blurred": measure(network, images, masks, sigma=1.0)}
    facts |= {"test_images": len(images), "overlap": overlap}
    network.save(args.out, facts=facts)
    with atomic_output(args.out / "README.md", overwrite=True) as path:
        path.write_text(_card(network, facts, overlap))
    print(f"overlap with the true masks (IoU): {overlap}\nwritten to {args.out}")
    return 0


def render_figures(split: str, *, clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of random puppets.

    Args:
        split: "train", "validation" or "test".
        clips: how many identities with a motion and a scene each.
        seed: of the choice.

    Returns:
        images: uint8 (N, 3, 128, 128); masks: bool (N, 128, 128).
    """
    seeds = np.random.default_rng([seed, len(split)]).choice(np.array(SPLITS[split]), (clips, 3))
    images, masks = [], []
    for identity, motion, scene in tqdm(seeds.tolist(), desc=f"rendering {split} figures", unit="clip"):
        clip = render_clip(identity, motion, scene, frames=FRAMES, stride=STRIDE, size=(SIDE, SIDE))
        images.append(clip.frames)
        masks.append(clip.mask)
    return rearrange(torch.from_numpy(np.concatenate(images)), "n h w c -> n c h w"), torch.from_numpy(
        np.concatenate(masks)
    )


def fit(images: Tensor, masks: Tensor, *, steps: int, seed: int) -> PuppetSegmenter:
    """Train by cross-entropy with AdamW and one cosine cycle.

    Args:
        images: uint8 (N, 3, H, W).
        masks: bool (N, H, W).
        steps: of 16 images, mirrored at random.
        seed: of initial weights, order and augmentation.

    Returns:
        PuppetSegmenter: in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PuppetSegmenter()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in (bar := tqdm(range(steps), desc="training", unit="step")):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        x, y = dirtied(images[rows].float() / 255, generator, blurred=0.35, sigma=1.5), masks[rows].float()
        if torch.rand((), generator=generator) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        loss = F.binary_cross_entropy_with_logits(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    return network.eval()


@torch.no_grad()
def measure(network: PuppetSegmenter, images: Tensor, masks: Tensor, *, sigma: float = 0.0) -> float:
    """Intersection over union with the true masks, over all pixels of all images; `sigma`: of a blur, px."""
    both = either = 0
    for x, y in zip(images.split(64), masks.split(64), strict=True):
        pixels = x.float() / 255
        found = network(blur(pixels, sigma=sigma) if sigma else pixels) > 0
        both, either = both + int((found & y).sum()), either + int((found | y).sum())
    return round(both / either, 4)


def _card(network: PuppetSegmenter, facts: dict[str, object], overlap: dict[str, float]) -> str:
    size = sum(parameter.numel() for parameter in network.parameters())
    return f"""# puppet-segmenter

A small U-Net ({size:,} parameters) that tells puppets from the scene behind them. `scripts/puppets.py report` takes the
figure masks of generated and of true videos from it alike. Code: `xdyna/puppets/segmenter.py`. It knows puppets only.

Trained by `python scripts/puppets.py train-segmenter` on {facts["train_images"]:,} images of the puppet world's
training split, blurred, coarsened and dirtied at random. Overlap with the true masks (intersection over union) on
{facts["test_images"]:,} images of identities, motions and scenes that were not trained on: {overlap["sharp"]:.3f};
blurred with a Gaussian of sigma 1 px, as generated images may be: {overlap["blurred"]:.3f}.
"""


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="train_segmenter.py", description="Train the network that finds puppets' figures.")
    p.add_argument("--clips", type=int, default=2000, help="rendered clips to train on (%(default)s)")
    p.add_argument("--test-clips", type=int, default=200, help="rendered clips to measure on (%(default)s)")
    p.add_argument("--steps", type=int, default=1500, help="of 16 images (%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=output_path, default=FOLDER, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
