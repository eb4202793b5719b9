"""Writes the files of one animation, frame by frame as they are decoded."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np

from xdyna.core.progress import Watch
from xdyna.media.folder import FrameFolderWriter, frame_files
from xdyna.media.image import write_png
from xdyna.media.sheet import contact_sheet, grid_frame
from xdyna.media.video import probe, read_frames
from xdyna.media.writer import VideoWriter
from xdyna.pipelines.controls import Conditions, Placement
from xdyna.pipelines.driving import Driving
from xdyna.pipelines.outputs import OutputFiles

SHEET_COLUMNS = 8
GRID_WIDTH = 8192  # largest width of the side-by-side video in px
GRID_HEIGHT, SHEET_HEIGHT = (240, 512), (160, 320)  # smallest and largest height of a cell in px


def write_outputs(
    files: OutputFiles,
    frames: Iterable[np.ndarray],
    *,
    reference: np.ndarray,
    driving: Driving,
    conditions: Conditions,
    keep_audio: bool,
    overwrite: bool,
    watch: Watch,
) -> None:
    """Write the video, the side-by-side video, the contact sheet and the keypoints that perception found.

    On failure or Ctrl-C no half video is left.

    Args:
        files: names.
        frames: generated frames in order, uint8 (H, W, 3); consumed as they come.
        reference: the reference as it was animated, uint8 (H, W, 3).
        driving: the driving file.
        conditions: what the networks saw.
        keep_audio: copy the driving file's sound, cut at the video's end.
        overwrite: whether existing files may be replaced.
        watch: told of each frame as "decoding".
    """
    count, height, width, _ = conditions.pose.shape
    label = conditions.placement.label
    cell_height = min(int(np.clip(height, *GRID_HEIGHT)), GRID_WIDTH * height // (6 * width))
    audio = driving.audio if keep_audio else None
    picked = set(np.linspace(0, count - 1, min(SHEET_COLUMNS, count)).round().astype(int).tolist())
    rows: dict[str, list[np.ndarray]] = {}
    with ExitStack() as stack:
        video: VideoWriter | FrameFolderWriter
        if files.save == "frames":
            video = FrameFolderWriter(files.video, size=(height, width), overwrite=overwrite)
        else:
            video = VideoWriter(
                files.video,
                fps=driving.fps,
                size=(height, width),
                audio_from=audio,
                overwrite=overwrite,
                lossless=files.save == "ffv1",
            )
        stack.enter_context(video)
        grid: VideoWriter | None = None
        shown = zip(
            driving_images(driving, conditions.placement), conditions.pose, _faces(conditions), frames, strict=True
        )
        for i, (driven, pose, face, frame) in enumerate(shown):
            cells = {"reference": reference, label: driven, "pose": pose, "face": face, "result": frame}
            present = {name: cell for name, cell in cells.items() if cell is not None}
            video.write(frame)
            side_by_side = grid_frame(present, height=cell_height)
            if grid is None:
                grid = stack.enter_context(
                    VideoWriter(
                        files.grid,
                        fps=driving.fps,
                        size=(side_by_side.shape[0], side_by_side.shape[1]),
                        audio_from=audio,
                        overwrite=overwrite,
                    )
                )
            grid.write(side_by_side)
            if i in picked:
                for name, cell in present.items():
                    rows.setdefault(name, []).append(cell)
            watch.step("decoding", i + 1, count)
    rows["reference"] = rows["reference"][:1]
    captions = [f"{i / float(driving.fps):.2f} s" for i in sorted(picked)]
    sheet = contact_sheet(
        rows, columns=SHEET_COLUMNS, cell_height=int(np.clip(height, *SHEET_HEIGHT)), captions=captions
    )
    write_png(files.sheet, sheet, overwrite=overwrite)
    if driving.kind == "video" and conditions.track is not None:
        conditions.track.save(files.keypoints, overwrite=overwrite)


def _faces(conditions: Conditions) -> Iterator[np.ndarray | None]:
    for i in range(len(conditions.pose)):
        yield None if conditions.face is None else conditions.face[i, :, :, 3:]


def describe(files: OutputFiles) -> str:
    """One line about the finished video."""
    if files.save == "frames":
        return f"{len(frame_files(files.video))} frames as PNG images"
    info = probe(files.video)
    sound = "with sound" if info.has_audio else "silent"
    return f"{info.frame_count} frames, {info.width}x{info.height}, {info.fps:.4g} fps, {info.duration:.2f} s, {sound}"


def driving_images(driving: Driving, placement: Placement) -> Iterator[np.ndarray | None]:
    """The driving person at the video's size, one per output frame; None where there are no images of a person."""
    if driving.face_video is None:
        yield from (None for _ in driving.rows)
    else:
        for frame in read_frames(driving.face_video, driving.video_frames(driving.rows)):
            yield placement.image(frame)
