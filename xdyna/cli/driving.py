"""The driving side of an animation: which frames are used, and the condition pictures made from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from xdyna.cli.guard import UsageError
from xdyna.config import InferConfig
from xdyna.media.image import CropResize, center_crop, top_quarter_crop
from xdyna.media.video import frame_times, natural_fps, probe, read_frames, resample_indices
from xdyna.perception.draw import draw_pose
from xdyna.perception.face_patch import face_patches
from xdyna.perception.smooth import OneEuro
from xdyna.perception.track import perceive
from xdyna.perception.types import PerceptionSummary, PoseTrack

KINDS = ("auto", "video", "pose", "keypoints")
MAX_FPS = 15.0  # the rate the published model was trained for


@dataclass(frozen=True)
class Driving:
    """A driving file and the frames of it that are used.

    Attributes:
        path: the file.
        kind: "video" (a person, perception runs), "pose" (skeleton pictures) or "keypoints" (.npz).
        size: (H, W) of its pictures.
        fps: frame rate of the output.
        source_fps: average frame rate of the file.
        rows: (T,) int64, frame of the file shown by each output frame; ascending, may repeat.
        duration: length of the file in s.
        has_audio: whether it has sound.
        track: the key points, for kind "keypoints".
        face_video: the video the faces are taken from; None where there is none.
    """

    path: Path
    kind: str
    size: tuple[int, int]
    fps: Fraction
    source_fps: float
    rows: np.ndarray
    duration: float
    has_audio: bool
    track: PoseTrack | None = None
    face_video: Path | None = None

    def frames(self, crop: CropResize) -> Iterator[np.ndarray]:
        """The driving person (or else the skeletons), cropped: uint8 (H, W, 3), one per output frame."""
        interpolation: Literal["area", "bilinear"] = "area" if self.face_video else "bilinear"
        for frame in read_frames(self.face_video or self.path, self.rows.tolist()):
            yield crop.image(frame, interpolation=interpolation)


def open_driving(
    path: Path,
    *,
    kind: str = "auto",
    face_video: Path | None = None,
    fps: float | None = None,
    stride: int | None = None,
    frames: int | None = None,
) -> Driving:
    """Look at a driving file and decide which of its frames are used, by time, so that its duration is kept.

    Args:
        path: video, pose video or key points.
        kind: one of `KINDS`; "auto" goes by the file's ending.
        face_video: for a pose video: the video it was made from, frame by frame, to take the faces from.
        fps: output rate; None takes the largest whole fraction of the file's rate up to 15.
        stride: use every n-th frame, i.e. the file's rate / n; not together with `fps`.
        frames: at most so many output frames (from the beginning); None for all.

    Returns:
        Driving: what was found.

    Raises:
        UsageError: fps and stride together, or a missing file.
        ValueError: an unreadable file.
    """
    if fps is not None and stride is not None:
        raise UsageError(f"--fps {fps:g} and --stride {stride} contradict each other; give only one of them")
    if not path.exists():
        raise UsageError(f"--drive {path}: no such file; expected a video, a pose video or a key point file (.npz)")
    if kind == "auto":
        kind = "keypoints" if path.suffix.lower() == ".npz" else "video"
    if kind == "auto":
        kind = "keypoints" if path.suffix.lower() == ".npz" else "video"
    if face_video is not None and kind != "pose":
        raise UsageError("--face-video goes with --drive-kind pose only; a driving video brings its own faces")
    track = None
    if kind == "keypoints":
        track = PoseTrack.load(path)
        times, size, audio = track.times - track.times[0], track.size, False
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / MAX_FPS
        duration, source_fps = float(times[-1]) + step, 1 / step
    else:
        info = probe(path)
        times, size, audio = frame_times(path), (info.height, info.width), info.has_audio
        duration, source_fps = info.duration, info.fps
    rate = Fraction(source_fps).limit_denominator(1001)
    if fps is not None:
        rate = Fraction(fps).limit_denominator(1001)
    else:
        rate = rate / stride if stride is not None else natural_fps(rate, MAX_FPS)
    rows = resample_indices(times, duration=duration, fps=float(rate), max_frames=frames)
    if face_video is not None:
        _check_face_video(face_video, path, last_row=int(rows[-1]), size=size)
    faces = path if kind == "video" else face_video
    return Driving(path, kind, size, rate, source_fps, rows, duration, audio, track, faces)


def _check_face_video(face_video: Path, pose_video: Path, *, last_row: int, size: tuple[int, int]) -> None:
    if not face_video.exists():
        raise UsageError(f"--face-video {face_video}: no such file")
    info = probe(face_video)
    if info.frame_count <= last_row or (info.height, info.width) != size:
        raise UsageError(
            f"--face-video {face_video} has {info.frame_count} frames of {info.height}x{info.width} (HxW), but the "
            f"pose video {pose_video} needs {last_row + 1} of {size[0]}x{size[1]}; they must show the same frames"
        )


@dataclass(frozen=True)
class Conditions:
    """Condition pictures of a clip.

    Attributes:
        pose: uint8 (T, H, W, 3).
        face: uint8 (T, H, W, 6) local and global face patch, or None.
        crop: how the driving pictures were cropped.
        summary: what perception found; None when it did not run.
        track: key points in the coordinates of the driving file; None for pose videos.
    """

    pose: np.ndarray
    face: np.ndarray | None
    crop: CropResize
    summary: PerceptionSummary | None
    track: PoseTrack | None


def make_conditions(
    driving: Driving, config: InferConfig, *, size: tuple[int, int], face: bool, cache_dir: Path | None
) -> Conditions:
    """Skeleton pictures and face patches for every output frame.

    Args:
        driving: the driving file.
        config: perception settings.
        size: (H, W) of the video to be made.
        face: make face patches.
        cache_dir: where key points are cached; None for the default folder.

    Returns:
        Conditions: at `size`.

    Raises:
        ValueError: no person in any frame; face patches asked of a file that has no pictures of a face.
    """
    # The published crops: with face control everything is cut alike, a quarter of the slack above; else centred.
    crop = (top_quarter_crop if face else center_crop)(driving.size, size)
    rows, repeats = np.unique(driving.rows, return_inverse=True)
    track: PoseTrack | None = None
    if driving.track is not None:
        track = driving.track.select(rows)
    elif driving.face_video is not None and (driving.kind == "video" or face):
        with tqdm(desc="finding the person", unit="frame") as bar:
            track = perceive(
                driving.face_video,
                frame_indices=rows,
                backend=config.pose_backend,
                person=config.person,
                cache_dir=cache_dir,
                progress=lambda done, total: _advance(bar, done, total),
                smooth=OneEuro() if config.smooth else None,
                max_gap=config.max_gap,
            )
    if driving.kind == "pose":
        skeletons = read_frames(driving.path, rows.tolist())
        drawn = np.stack([crop.image(frame, interpolation="bilinear") for frame in skeletons])
    else:
        assert track is not None
        placed = track.transform(crop)
        drawn = np.stack(
            [draw_pose(b, h, size=size, head=config.head) for b, h in zip(placed.body, placed.hands, strict=True)]
        )
    patches = None
    if face:
        assert track is not None
        assert driving.face_video is not None
        pictures = np.stack([crop.image(frame) for frame in read_frames(driving.face_video, rows.tolist())])
        patches = np.concatenate(face_patches(pictures, track.transform(crop).face), axis=-1)[repeats]
    return Conditions(drawn[repeats], patches, crop, track.summary if track else None, track)


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
