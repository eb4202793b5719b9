"""Files of one animation: the video, a side-by-side video, a contact sheet and the run manifest."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xdyna.cli.conditions import Conditions, driving_pictures
from xdyna.cli.driving import Driving
from xdyna.media.atomic import atomic_output, unique_path
from xdyna.media.image import write_png
from xdyna.media.sheet import contact_sheet, grid_frame
from xdyna.media.video import probe
from xdyna.media.writer import VideoWriter

SHEET_COLUMNS = 8
GRID_HEIGHT, SHEET_HEIGHT = (240, 512), (160, 320)  # smallest and largest height of a cell in px


@dataclass(frozen=True)
class OutputFiles:
    """Names of the files of one animation, all beside each other."""

    video: Path

    @property
    def grid(self) -> Path:
        """Side-by-side video."""
        return self.video.with_name(f"{self.video.stem}.grid.mp4")

    @property
    def sheet(self) -> Path:
        """Contact sheet."""
        return self.video.with_name(f"{self.video.stem}.sheet.png")

    @property
    def manifest(self) -> Path:
        """Run manifest."""
        return self.video.with_name(f"{self.video.stem}.run.json")

    @property
    def keypoints(self) -> Path:
        """Key points of the driving video, as `--drive` takes them; written when perception ran."""
        return self.video.with_name(f"{self.video.stem}.keypoints.npz")

    def all(self, *, keypoints: bool) -> tuple[Path, ...]:
        """Every file of a run, the manifest last."""
        points = (self.keypoints,) if keypoints else ()
        return (self.video, self.grid, self.sheet, *points, self.manifest)

    def check_free(self, *, overwrite: bool) -> None:
        """See whether the names are free.

        Raises:
            ValueError: a file exists and may not be overwritten.
        """
        for path in self.all(keypoints=True):
            if path.exists() and not overwrite:
                raise ValueError(f"{path} exists already; choose another --out, or give --overwrite to replace it")

    def check_writable(self) -> None:
        """See before hours of work whether the folder can be written to; makes it where it is missing.

        Raises:
            ValueError: it cannot.
        """
        try:
            with atomic_output(self.video, overwrite=True):
                raise _OnlyProbing
        except _OnlyProbing:
            pass


class _OnlyProbing(Exception):
    """Leaves `atomic_output` without writing."""


def output_files(out: Path | None, *, reference: Path, driving: Path, folder: Path) -> OutputFiles:
    """Where the results go.

    Args:
        out: the video's name, or None for REFERENCE_DRIVING.mp4 in `folder`, numbered where that exists.
        reference: picture, for the name.
        driving: driving file, for the name.
        folder: for `out` = None.
    """
    if out is None:
        return OutputFiles(unique_path(folder / f"{reference.stem}_{driving.stem}.mp4"))
    return OutputFiles(out if out.suffix else out.with_suffix(".mp4"))


def write_outputs(
    files: OutputFiles,
    frames: Iterable[np.ndarray],
    *,
    reference: np.ndarray,
    driving: Driving,
    conditions: Conditions,
    keep_audio: bool,
    overwrite: bool,
) -> None:
    """Write the video, the side-by-side video, the contact sheet and the key points that perception found.

    On failure or Ctrl-C no half video is left.

    Args:
        files: names.
        frames: generated frames in order, uint8 (H, W, 3); consumed as they come.
        reference: the reference as it was animated, uint8 (H, W, 3).
        driving: the driving file.
        conditions: what the networks saw.
        keep_audio: copy the driving file's sound, cut at the video's end.
        overwrite: whether existing files may be replaced.
    """
    count, height, width, _ = conditions.pose.shape
    cell_height = int(np.clip(height, *GRID_HEIGHT))
    audio = driving.path if keep_audio and driving.has_audio else None
    picked = set(np.linspace(0, count - 1, min(SHEET_COLUMNS, count)).round().astype(int).tolist())
    rows: dict[str, list[np.ndarray]] = {}
    with ExitStack() as stack:
        video = stack.enter_context(
            VideoWriter(files.video, fps=driving.fps, size=(height, width), audio_from=audio, overwrite=overwrite)
        )
        grid: VideoWriter | None = None
        shown = zip(
            driving_pictures(driving, conditions.placement), conditions.pose, _faces(conditions), frames, strict=True
        )
        for i, (driven, pose, face, frame) in enumerate(tqdm(shown, total=count, desc="decoding", unit="frame")):
            cells = {"reference": reference, "driving": driven, "pose": pose, "face": face, "result": frame}
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
    info = probe(files.video)
    sound = "with sound" if info.has_audio else "silent"
    return f"{info.frame_count} frames, {info.width}x{info.height}, {info.fps:.4g} fps, {info.duration:.2f} s, {sound}"
