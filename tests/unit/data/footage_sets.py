"""Small data sets of real (that is, encoded) videos: puppets written to mp4, with their truth as the numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from xdyna.core.files import file_sha256
from xdyna.data.records import DATASET_FILE, FORMAT, MANIFEST, ClipArrays, ClipRecord
from xdyna.data.store import write_arrays, write_manifest
from xdyna.media import VideoWriter
from xdyna.puppets.world import render_clip

FPS = 24
BORDER = 8  # px of letterbox, above and below
FIRST = 2  # frame of the video that the clip begins with


def record(name: str, **changes: object) -> ClipRecord:
    """A clip of a human, 64 x 64 px, 10 frames; nothing is on disk."""
    plain = ClipRecord(
        clip_id=name,
        source_id=name,
        path=f"/nowhere/{name}.mp4",
        sha256="0" * 64,
        kind="human",
        caption=f"text of {name}",
        license="",
        group=name,
        split="train",
        start=FIRST,
        frames=10,
        fps=float(FPS),
        crop_left=0,
        crop_top=BORDER,
        width=64,
        height=64,
        arrays=f"clips/{name}.npz",
        person_height=0.5,
        confidence=1.0,
        motion=0.1,
        camera=0.0,
        phash="0" * 16,
    )
    return dataclasses.replace(plain, **changes)


def write_set(folder: Path, records: Sequence[ClipRecord]) -> Path:
    """A data set folder of these clips, without their videos and numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATASET_FILE).write_text(json.dumps({"format": FORMAT, "options": {}}))
    write_manifest(folder / MANIFEST, records)
    return folder


def write_clip(folder: Path, clip: ClipRecord, *, seed: int) -> ClipRecord:
    """Render a clip into a letterboxed video, write its numbers; the record that fits."""
    height, width = clip.height, clip.width
    shown = render_clip(seed, seed, seed, frames=FIRST + clip.frames, size=(height, width), kind=clip.kind)
    path = folder / "videos" / f"{clip.clip_id}.mp4"
    with VideoWriter(path, fps=FPS, size=(height + 2 * BORDER, width)) as writer:
        for frame in shown.frames:
            writer.write(np.pad(frame, ((BORDER, BORDER), (0, 0), (0, 0))))
    rows = slice(FIRST, None)
    small = (64, round(64 * width / height)) if height >= width else (round(64 * height / width), 64)
    masks = [cv2.resize(mask.astype(np.uint8), small[::-1]) > 0 for mask in shown.mask[rows]]
    boxes = np.zeros((clip.frames, 4), np.float32)
    for row, mask in enumerate(shown.mask[rows] if clip.kind == "human" else ()):
        ys, xs = np.nonzero(mask)
        boxes[row] = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else 0
    numbers = np.arange(FIRST, FIRST + clip.frames)
    points = {name: getattr(shown, name)[rows].astype(np.float32) for name in ("body", "hands", "face")}
    arrays = ClipArrays(**points, boxes=boxes, mask=np.stack(masks), times=numbers / FPS, frame_index=numbers)
    write_arrays(folder / clip.arrays, arrays)
    return dataclasses.replace(clip, path=str(path), sha256=file_sha256(path))


def build_set(folder: Path, clips: Sequence[ClipRecord]) -> Path:
    """A whole data set."""
    return write_set(folder, [write_clip(folder, clip, seed=number) for number, clip in enumerate(clips)])
