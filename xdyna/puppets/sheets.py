"""Contact sheets of held-out clips: reference, driving skeletons, generated frames and the truth."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from xdyna.core.atomic import atomic_output
from xdyna.media.sheet import contact_sheet
from xdyna.puppets.heldout import Task

TIMES = 5  # frames shown of each clip
ACROSS = 2  # clips side by side
MAX_BYTES = 1_000_000
_PAPER = 250


def clip_block(task: Task, frames: np.ndarray, *, title: str) -> np.ndarray:
    """One clip of a sheet: the reference large at the left, then skeletons, generated frames and truth in rows.

    Args:
        task: inputs and truth.
        frames: uint8 (T, H, W, 3), generated.
        title: over the clip.

    Returns:
        uint8 (H', W', 3).
    """
    rows = {
        "reference": [task.reference],
        "driving": list(task.pose),
        "generated": list(frames),
        "truth": list(task.truth.frames),
    }
    return contact_sheet(rows, columns=TIMES, cell_height=max(32, frames.shape[1]), title=title)


def write_sheet(path: Path, blocks: Sequence[np.ndarray]) -> None:
    """Lay blocks out in columns and write a PNG.

    Where true colour would take more than 1 MB, the image gets a palette of 256 colours of its own.

    Args:
        path: replaced if it exists.
        blocks: uint8 (H', W', 3) each.

    Raises:
        ValueError: no blocks.
    """
    if not blocks:
        raise ValueError("a sheet was given no clips; give at least one")
    rows = [blocks[k : k + ACROSS] for k in range(0, len(blocks), ACROSS)]
    heights = [max(block.shape[0] for block in row) for row in rows]
    width = max(block.shape[1] for block in blocks)
    sheet = np.full((sum(heights), width * min(ACROSS, len(blocks)), 3), _PAPER, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, block in enumerate(row):
            sheet[top : top + block.shape[0], column * width : column * width + block.shape[1]] = block
        top += height
    image = Image.fromarray(sheet)
    data = _png(image)
    if len(data) > MAX_BYTES:
        data = _png(image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def _png(image: Image.Image) -> bytes:
    encoded = BytesIO()
    image.save(encoded, format="PNG", optimize=True)
    return encoded.getvalue()
