"""Renders the media of the documents' sandbox, short puppet videos: python tests/docs/media.py FOLDER."""

import sys
from pathlib import Path

import numpy as np

from xdyna.media.image import write_png
from xdyna.media.writer import VideoWriter
from xdyna.puppets.world.render import render_clip

LARGE, SMALL = (512, 384), (128, 128)
FRAMES = 26  # of footage: a clip has at least 24
SHORT = 8


def write(path: Path, frames: np.ndarray, fps: float) -> None:
    with VideoWriter(path, fps=fps, size=frames.shape[1:3]) as writer:
        for frame in frames:
            writer.write(frame)


def main(folder: Path) -> None:
    for name, seeds in (("a", (0, 0, 0)), ("b", (1, 3, 2)), ("c", (5, 0, 4))):
        clip = render_clip(*seeds, frames=FRAMES, size=LARGE, motion_kind="dance")
        write(folder / f"{name}.mp4", clip.frames, clip.fps)
        if name == "b":
            write_png(folder / "me.png", clip.frames[0])
    for number in range(2):
        clip = render_clip(number, number, number, frames=SHORT, size=SMALL)
        write(folder / "small" / f"truth_{number}.mp4", clip.frames, clip.fps)
        write(folder / "small" / f"made_{number}.mp4", np.roll(clip.frames, 1, axis=2), clip.fps)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
