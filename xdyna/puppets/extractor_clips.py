"""What the puppet extractors are trained and measured on: clips with their halves, and heads of puppets.

Rendering takes longer than training: clips are kept in files of 100, so that an interrupted run goes on.

Shape legend: T frames, H W pixels (64 x 64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xdyna.core.atomic import atomic_output
from xdyna.evaluation.masks import BACKGROUND, FIGURE, FULL, cut
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import read_npz
from xdyna.puppets.networks import CLIP_FRAMES, STATIC, STILL, cut_head, small_clip
from xdyna.puppets.world import DYNAMIC_SCENES, MOTION_KINDS, SPLITS, STATIC_SCENES, render_clip

SCENES, MOTIONS = (STATIC, *DYNAMIC_SCENES), (STILL, *MOTION_KINDS)
PART = 100  # clips in a file
LATEST_START = 28  # first frames of clips are drawn up to here: hair and cloth have begun to swing
VIEWS, VIEW_FRAMES, VIEW_STRIDE = 2, 4, 5
"""Clips per identity, each with its own motion and scene; frames of each, and world frames between them."""

Arrays = dict[str, np.ndarray]
_CLIP_KEYS = ("full", "figure", "scene", "share", "scene_kind", "motion_kind")


def dynamics_clips(split: str, *, clips: int, seed: int, folder: Path) -> Arrays:
    """Clips of random puppets, kinds of scenes and motions in equal shares.

    Args:
        split: "train", "validation" or "test".
        clips: how many.
        seed: of the choice.
        folder: where they are kept.

    Returns:
        Row by row: full, figure (the rest black) and scene (the scene without the figure): uint8 (T, 64, 64, 3); share
        (of the figure in each pixel): uint8 (T, 64, 64), 0 to 255; scene_kind and motion_kind: numbers in `SCENES` and
        `MOTIONS`.
    """
    return _kept(folder, f"dynamics-{split}-{seed}", clips, _CLIP_KEYS, lambda k: _dynamics_clip(split, seed, k))


def _dynamics_clip(split: str, seed: int, number: int) -> Arrays:
    rng = np.random.default_rng([seed, len(split), number, 1])
    identity, motion, scene = rng.choice(np.array(SPLITS[split]), 3).tolist()
    kinds = (*STATIC_SCENES, *DYNAMIC_SCENES)
    # Motions and scenes take turns: every pair of kinds occurs.
    scene_kind, motion_kind = kinds[number % len(kinds)], MOTION_KINDS[number % len(MOTION_KINDS)]
    start = int(rng.integers(LATEST_START))
    clip = render_clip(
        identity, motion, scene, frames=CLIP_FRAMES, start=start, scene_kind=scene_kind, motion_kind=motion_kind
    )
    alone = render_clip(
        identity, motion, scene, frames=CLIP_FRAMES, start=start, scene_kind=scene_kind, kind="scene"
    ).frames
    share = np.repeat(clip.mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    return {
        "full": to_small(clip.frames),
        "figure": to_small(cut(clip.frames, clip.mask, FIGURE)),
        "scene": to_small(alone),
        "share": to_small(share)[..., 0],
        "scene_kind": np.array(SCENES.index(scene_kind) if scene_kind in SCENES else SCENES.index(STATIC)),
        "motion_kind": np.array(MOTIONS.index(motion_kind)),
    }


def identity_heads(split: str, *, identities: int, seed: int, folder: Path) -> Arrays:
    """Heads of random puppets, each identity in `VIEWS` clips of other motions and scenes.

    Args:
        split: "train", "validation" or "test".
        identities: how many.
        seed: of the choice.
        folder: where they are kept.

    Returns:
        heads: uint8 (identities, VIEWS, VIEW_FRAMES, 48, 48, 3).
    """
    return _kept(folder, f"identity-{split}-{seed}", identities, ("heads",), lambda k: _identity_heads(split, seed, k))


def _identity_heads(split: str, seed: int, number: int) -> Arrays:
    rng = np.random.default_rng([seed, len(split), number, 2])
    identity = int(rng.choice(np.array(SPLITS[split])))
    views = []
    for _ in range(VIEWS):
        motion, scene = rng.choice(np.array(SPLITS[split]), 2).tolist()
        start = int(rng.integers(LATEST_START))
        clip = render_clip(identity, motion, scene, frames=VIEW_FRAMES, start=start, stride=VIEW_STRIDE)
        views.append([cut_head(frame, points) for frame, points in zip(clip.frames, clip.face, strict=True)])
    return {"heads": np.array(views)}


def to_small(frames: np.ndarray) -> np.ndarray:
    """`small_clip` in uint8."""
    return (255 * small_clip(frames)).round().byte().numpy()


def region_of(clips: Arrays, number: int, region: str) -> np.ndarray:
    """A clip, or one half of it: uint8 (T, 64, 64, 3). Args: region: "full", "figure" or "background"."""
    if region == BACKGROUND:  # scaling is linear: what is not the figure is the rest
        full, figure = clips["full"][number].astype(np.int16), clips["figure"][number]
        return (full - figure).clip(0, 255).astype(np.uint8)
    return np.asarray(clips["full" if region == FULL else "figure"][number])


def frozen(clips: Arrays, number: int, region: str, *, onset: int) -> np.ndarray:
    """A clip whose scene stands still from frame `onset` on, while the figure goes on.

    Args:
        clips: of `dynamics_clips`.
        number: which.
        region: "full" or "background".
        onset: 0 to T - 1.

    Returns:
        uint8 (T, 64, 64, 3).
    """
    result = region_of(clips, number, region).copy()
    rest = 1 - clips["share"][number, onset:, ..., None].astype(np.float32) / 255
    behind = clips["scene"][number, onset].astype(np.float32) * rest
    front = clips["figure"][number, onset:] if region == FULL else 0
    result[onset:] = (behind + front).round().clip(0, 255).astype(np.uint8)
    return result


def shuffle_order(window: int, rng: np.random.Generator) -> np.ndarray:
    """Frame numbers 0 to T - 1, shuffled inside windows of so many frames; never the natural order."""
    while True:
        order = np.concatenate([first + rng.permutation(window) for first in range(0, CLIP_FRAMES, window)])
        if not np.array_equal(order, np.arange(CLIP_FRAMES)):
            return order


def _kept(folder: Path, name: str, count: int, keys: Sequence[str], make: Callable[[int], Arrays]) -> Arrays:
    """`count` rows of `make`, from files where they are kept already."""
    gathered = _gather(_parts(folder, name, count, keys, make))
    return {key: np.concatenate(gathered.pop(key)) for key in keys}


def _parts(folder: Path, name: str, count: int, keys: Sequence[str], make: Callable[[int], Arrays]) -> Iterator[Arrays]:
    with tqdm(total=count, desc=f"rendering {name}", unit="clip") as bar:
        for first in range(0, count, PART):
            numbers = range(first, min(first + PART, count))
            path = folder / f"{name}-{numbers.start:05d}-{numbers.stop:05d}.npz"
            part = _read(path, keys)
            if part is None:
                part = {key: np.stack(rows) for key, rows in _gather(_counted(numbers, make, bar)).items()}
                with atomic_output(path, overwrite=True) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(file, allow_pickle=False, **part)
            else:
                bar.update(len(numbers))
            yield part


def _counted(numbers: range, make: Callable[[int], Arrays], bar: tqdm) -> Iterator[Arrays]:  # type: ignore[type-arg]
    for number in numbers:
        yield make(number)
        bar.update()


def _gather(rows: Iterator[Arrays]) -> dict[str, list[np.ndarray]]:
    gathered: dict[str, list[np.ndarray]] = {}
    for row in rows:
        for key, array in row.items():
            gathered.setdefault(key, []).append(array)
    return gathered


def _read(path: Path, keys: Sequence[str]) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        return read_npz(path, keys=keys)
    except PerceptionError:
        return None
