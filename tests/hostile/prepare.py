"""The sound files that hostile ones are made of."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import torch

from tests.process.small import SMALL, standing_figure
from xdyna.media.video import VideoWriter
from xdyna.perception.draw import draw_pose
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline

FRAMES = 5


def make_shared(folder: Path) -> None:
    """pipeline/, pipeline.ckpt, ref.png, ref.npz, drive.npz, poses.mp4, .mkv, .avi, .webm, .gif, song.m4a."""
    pipeline = build_pipeline(SMALL, seed=0)
    save_pipeline(pipeline, folder / "pipeline", untrained=True)
    torch.save(pipeline.unet.state_dict(), folder / "unet.ckpt")
    torch.save(pipeline.unet.state_dict(), folder / "old.ckpt", _use_new_zipfile_serialization=False)
    image = np.indices((96, 64)).sum(0)[..., None] * np.array([1, 1, 0.5])
    cv2.imwrite(str(folder / "ref.png"), image.astype(np.uint8))
    standing_figure(frames=1).save(folder / "ref.npz")
    track = standing_figure(frames=FRAMES)
    track.save(folder / "drive.npz")
    frames = [draw_pose(body, hands, size=track.size) for body, hands in zip(track.body, track.hands, strict=True)]
    with VideoWriter(folder / "poses.mp4", fps=10, size=track.size) as writer:
        for frame in frames:
            writer.write(frame)
    for ending, codec, pixels in (
        ("mkv", "libx264", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ):
        with av.open(str(folder / f"poses.{ending}"), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 96, pixels
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    with av.open(str(folder / "song.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        for packet in (*stream.encode(sound), *stream.encode(None)):
            container.mux(packet)
