"""Overviews for people: a contact sheet of many frames, side-by-side frames of a comparison video, an animated WebP."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xdyna.core.atomic import atomic_output
from xdyna.media.errors import MediaError
from xdyna.media.video import probe, read_frames

_PAPER = (250, 250, 251)
_INK = (32, 33, 36)
_GREY = (128, 130, 136)
_BAR = (24, 25, 28)
_BAR_INK = (236, 237, 240)


def contact_sheet(
    rows: Mapping[str, Sequence[np.ndarray]],
    *,
    columns: int = 8,
    cell_height: int = 192,
    title: str | None = None,
    captions: Sequence[str] | None = None,
) -> np.ndarray:
    """A sheet of labelled rows of frames.

    Each row shows `columns` frames spread evenly over it, the first and the last included. A single image beside rows
    of several frames (the reference, for instance) stands larger at the left. Frames keep their shape.

    Args:
        rows: label -> frames, uint8 (H, W, 3) RGB; sizes may differ between rows.
        columns: at most so many frames per row.
        cell_height: px of every frame on the sheet, at least 32.
        title: a headline, if any.
        captions: a text over each column; default "frame N", counted from 0 along the longest row.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        MediaError: no rows, an empty row, columns below 1, cell_height below 32, or a frame of another form.
    """
    if not rows or any(len(frames) == 0 for frames in rows.values()):
        raise MediaError("a contact sheet needs at least one row, and at least one frame in each row")
    if columns < 1 or cell_height < 32:
        raise MediaError(f"columns must be at least 1 and cell_height at least 32; given {columns} and {cell_height}")
    longest = max(len(frames) for frames in rows.values())
    columns = min(columns, longest)
    if captions is None:
        captions = [f"frame {k}" for k in _spread(longest, columns)]
    series = {label: frames for label, frames in rows.items() if len(frames) > 1 or longest == 1}
    text = max(13, cell_height // 12)
    gap = text // 2
    body = _rows_block(series, columns=columns, cell_height=cell_height, captions=list(captions)[:columns], text=text)

    lead_height = min(2, len(series)) * (cell_height + gap) - gap
    blocks = [
        _rows_block({"": frames}, columns=1, cell_height=lead_height, captions=[label], text=text)
        for label, frames in rows.items()
        if label not in series
    ]
    blocks.append(body)
    margin = max(14, cell_height // 10)
    head = margin + (round(text * 2.4) if title else 0)
    width = sum(block.width for block in blocks) + 2 * gap * (len(blocks) - 1) + 2 * margin
    if title:
        width = max(width, _text_width(_font(round(text * 1.5)), title) + 2 * margin)
    sheet = Image.new("RGB", (width, head + max(block.height for block in blocks) + margin), _PAPER)
    if title:
        ImageDraw.Draw(sheet).text((margin, margin), title, font=_font(round(text * 1.5)), fill=_INK)
    left = margin
    for block in blocks:
        sheet.paste(block, (left, head))
        left += block.width + 2 * gap
    return np.asarray(sheet).copy()


def _rows_block(
    rows: Mapping[str, Sequence[np.ndarray]],
    *,
    columns: int,
    cell_height: int,
    captions: Sequence[str],
    text: int,
) -> Image.Image:
    """Rows of frames with their labels at the left and captions over the columns."""
    images = {
        label: [_scaled(frames[k], cell_height) for k in _spread(len(frames), min(columns, len(frames)))]
        for label, frames in rows.items()
    }
    gap = text // 2
    label_font, small_font = _font(text + 2), _font(text)
    label_width = max(_text_width(label_font, label) + 2 * gap if label else 0 for label in rows)
    cell_width = max(image.shape[1] for row in images.values() for image in row)
    cell_width = max(cell_width, *(_text_width(small_font, caption) for caption in captions))
    first_row = text + gap + 4
    size = (label_width + columns * (cell_width + gap) - gap, first_row + len(rows) * (cell_height + gap) - gap)
    block = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(block)
    for column, caption in enumerate(captions):
        x = label_width + column * (cell_width + gap) + cell_width // 2
        draw.text((x, text // 2), caption, font=small_font, fill=_GREY, anchor="mm")
    for number, (label, row) in enumerate(images.items()):
        top = first_row + number * (cell_height + gap)
        draw.text((0, top + cell_height // 2), label, font=label_font, fill=_INK, anchor="lm")
        for column, image in enumerate(row):
            left = label_width + column * (cell_width + gap) + (cell_width - image.shape[1]) // 2
            block.paste(Image.fromarray(image), (left, top))
    return block


def grid_frame(cells: Mapping[str, np.ndarray], *, height: int = 512) -> np.ndarray:
    """One frame of a side-by-side video: columns of equal height, each under its label.

    Args:
        cells: label -> uint8 (H, W, 3) RGB, from left to right; sizes may differ.
        height: px of the images, at least 32; the label bar comes on top.

    Returns:
        uint8 (H, W, 3) RGB with even sides, the same size for the same labels and image shapes.

    Raises:
        MediaError: no cells, height below 32, or a cell of another form.
    """
    if not cells:
        raise MediaError("a grid needs at least one image")
    if height < 32:
        raise MediaError(f"grid height must be at least 32 px; given {height}")
    images = [_scaled(image, height) for image in cells.values()]
    gap = max(2, height // 128)
    bar = _label_bar(tuple(cells), tuple(image.shape[1] for image in images), gap, max(20, height // 16))
    total_height, total_width = bar.shape[0] + height, bar.shape[1]
    grid = np.empty((total_height + total_height % 2, total_width + total_width % 2, 3), dtype=np.uint8)
    grid[:] = _BAR
    grid[: bar.shape[0], : bar.shape[1]] = bar
    left = 0
    for image in images:
        grid[bar.shape[0] : total_height, left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return grid


@functools.lru_cache(maxsize=32)
def _label_bar(labels: tuple[str, ...], widths: tuple[int, ...], gap: int, height: int) -> np.ndarray:
    """The dark bar with one centred label per column; the text shrinks where a column is narrow."""
    bar = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), height), _BAR)
    draw = ImageDraw.Draw(bar)
    left = 0
    for label, width in zip(labels, widths, strict=True):
        size = round(height * 0.55)
        while size > 7 and _text_width(_font(size), label) > width - 4:
            size -= 1
        draw.text((left + width // 2, height // 2), label, font=_font(size), fill=_BAR_INK, anchor="mm")
        left += width + gap
    return np.asarray(bar).copy()


def _spread(count: int, picks: int) -> list[int]:
    """`picks` positions spread evenly over 0..count-1, both ends included."""
    return [int(k) for k in np.round(np.linspace(0, count - 1, picks)).astype(int)]


def _scaled(image: np.ndarray, height: int) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise MediaError(f"images must be uint8 (H, W, 3); given {image.dtype} {image.shape}")
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method))


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _text_width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def write_webp(path: Path, video: Path, *, overwrite: bool = False) -> None:
    """A video as an animated WebP that repeats for ever, for a page.

    Args:
        path: the .webp file.
        video: read frame by frame; shown at its rate.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileError: the file exists or cannot be written.
    """
    frames = [Image.fromarray(frame) for frame in read_frames(video)]
    with atomic_output(path, overwrite=overwrite) as temporary:
        frames[0].save(
            temporary, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 / probe(video).fps), loop=0,
            quality=75,
        )  # fmt: skip
