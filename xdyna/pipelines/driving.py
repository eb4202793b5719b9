"""The driving side of an animation: which frames of which file are used."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from xdyna.core.errors import UsageError
from xdyna.core.files import is_address
from xdyna.media.video import frame_times, natural_fps, nominal_fps, probe, resample_indices
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import PoseTrack

MOST_FRAMES = 1_000_000  # of a result: 18 hours at 15 fps
MAX_FPS = 15.0  # the rate the published model was trained for


@dataclass(frozen=True)
class Driving:
    """A driving file and the frames of it that are used.

    Attributes:
        path: the file.
        kind: "video" (a person, perception runs), "pose" (pose maps) or "keypoints" (.npz).
        size: (H, W) of its images.
        fps: frame rate of the output.
        source_fps: nominal frame rate of the file.
        rows: (T,) int64, frame of the file shown by each output frame; ascending, may repeat.
        duration: length of the file in s.
        audio: the file whose sound goes with it (itself, or else the face video); None where there is none.
        track: the keypoints, for kind "keypoints".
        face_video: the video the faces are taken from, which is also shown beside the result; None where there is none.
    """

    path: Path
    kind: str
    size: tuple[int, int]
    fps: Fraction
    source_fps: float
    rows: np.ndarray
    duration: float
    audio: Path | None
    track: PoseTrack | None = None
    face_video: Path | None = None

    def video_frames(self, rows: np.ndarray) -> list[int]:
        """Frames of `face_video` that show given frames of the file; keypoints know where they were found."""
        return (rows if self.track is None else self.track.frame_index[rows]).tolist()

    def note(self) -> str | None:
        """What was assumed about a folder of frames; None for files, which say it themselves."""
        if self.track is not None or not self.path.is_dir():
            return None
        return (
            f"note: {self.path} is a folder of frames, which says no rate: {self.source_fps:g} frames per second are "
            "taken (--fps)"
        )


def open_driving(
    given: str | Path | PoseTrack,
    *,
    kind: str = "auto",
    face_video: Path | None = None,
    fps: float | None = None,
    stride: int | None = None,
    frames: int | None = None,
) -> Driving:
    """Look at a driving file and decide which of its frames are used, by time, so that its duration is kept.

    Args:
        given: video, pose video (or a folder of the frames of one), or keypoints; or a track.
        kind: one of `DRIVE_KINDS`; "auto" goes by the file's ending.
        face_video: for a pose video or keypoints: the video they were made from, to take the faces from. A pose video
            goes with it frame by frame, keypoints by their `frame_index`.
        fps: output rate; None takes the largest whole fraction of the file's rate up to 15. Of a folder of images,
            which has no rate, the rate of its frames, too; None: 15.
        stride: use every n-th frame, i.e. the file's rate / n; not together with `fps`.
        frames: at most so many output frames (from the beginning); None for all.

    Returns:
        Driving: what was found.

    Raises:
        UsageError: fps and stride together, a missing file, or a face video that does not fit.
        ValueError: an unreadable file.
    """
    if fps is not None and stride is not None:
        raise UsageError(f"--fps {fps:g} and --stride {stride} contradict each other; give only one of them")
    path = Path("keypoints") if isinstance(given, PoseTrack) else Path(given)
    if isinstance(given, PoseTrack):
        kind = "keypoints"
    elif is_address(given):
        raise UsageError(f"--drive {given}: addresses are for `xdyna animate` alone; download it and give the file")
    elif not path.exists():
        raise UsageError(f"--drive {path}: no such file; expected a video, a pose video or a keypoint file (.npz)")
    if kind == "auto":
        kind = "keypoints" if path.suffix.lower() == ".npz" else "video"
    if face_video is not None and kind == "video":
        raise UsageError(
            "--face-video goes with keypoints (.npz) or --drive-kind pose only; a driving video brings its own faces"
        )
    track = None
    if kind == "keypoints":
        track = given if isinstance(given, PoseTrack) else PoseTrack.load(path)
        times, size, audio = track.times - track.times[0], track.size, False
        if not track.found.any():
            raise PerceptionError(f"{path} holds no person in any of its {len(times)} frames; detect keypoints again")
        source_fps = nominal_fps(times) or MAX_FPS
        duration = float(times[-1]) + 1 / source_fps
    else:
        own = fps or MAX_FPS
        info = probe(path, fps=own)
        times, size, audio = frame_times(path, fps=own), (info.height, info.width), info.has_audio
        duration, source_fps = info.duration, info.fps
    if stride is not None and stride > len(times):
        raise UsageError(f"--stride {stride}: {path} has only {len(times)} frames; use a smaller one")
    rate = Fraction(source_fps).limit_denominator(1001)
    if fps is not None:
        rate = Fraction(fps).limit_denominator(1001)
    elif stride is not None:
        rate = rate / stride
    else:
        rate = natural_fps(rate, MAX_FPS) if rate > 0 else rate
    wanted = min(duration * float(rate), np.inf if frames is None else frames)
    if not (rate > 0 and duration > 0 and wanted <= MOST_FRAMES):
        raise UsageError(
            f"{path} has {len(times)} frames in {duration:.4g} s by its time stamps, {wanted:.4g} at {float(rate):g} "
            f"frames per second; expected at most {MOST_FRAMES} in all: give --frames, --fps, or a file with "
            "other time stamps"
        )
    rows = resample_indices(times, duration=duration, fps=float(rate), max_frames=frames)
    if face_video is not None:
        _check_face_video(face_video, path, rows=rows, size=size, track=track, fps=source_fps)
    faces = path if kind == "video" else face_video
    sound = path if audio else None
    begins = track is None or track.frame_index[rows[0]] == 0  # the sound is taken from its beginning
    if sound is None and face_video is not None and begins and probe(face_video, fps=source_fps).has_audio:
        sound = face_video
    return Driving(path, kind, size, rate, source_fps, rows, duration, sound, track, faces)


def _check_face_video(
    face_video: Path, drive: Path, *, rows: np.ndarray, size: tuple[int, int], track: PoseTrack | None, fps: float
) -> None:
    if not face_video.exists():
        raise UsageError(f"--face-video {face_video}: no such file")
    info = probe(face_video, fps=fps)
    needed = rows if track is None else track.frame_index[rows]
    last = int(needed[-1])
    if info.frame_count <= last or (info.height, info.width) != size:
        raise UsageError(
            f"--face-video {face_video} has {info.frame_count} frames of {info.height}x{info.width} (HxW), but "
            f"{drive} needs {last + 1} of {size[0]}x{size[1]}; they must show the same frames"
        )
    if track is None:
        return
    shown, found = frame_times(face_video, fps=fps)[needed], track.times[rows]
    apart = np.abs((shown - shown[0]) - (found - found[0]))
    if apart.max() > 0.5 / info.fps:
        worst = int(apart.argmax())
        raise UsageError(
            f"--face-video {face_video} shows frame {needed[worst]} {shown[worst] - shown[0]:.3f} s after frame "
            f"{needed[0]}, but in {drive} {found[worst] - found[0]:.3f} s lie between them; give the "
            "video that the keypoints were found in"
        )
