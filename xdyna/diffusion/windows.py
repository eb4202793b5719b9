"""Which frames are denoised together. Motion modules know a limited number of frames, so a longer video is covered by
overlapping windows whose predictions are averaged per frame (MultiDiffusion, arXiv 2302.08113, along time).
"""

from collections.abc import Callable

Schedule = Callable[..., list[list[int]]]


def uniform_windows(frames: int, *, context: int, overlap: int, offset: int) -> list[list[int]]:
    """The published schedule: windows in a closed loop, the last ones continue with the first frames.

    Window i holds the frames (i (context - overlap) + k + offset) mod frames, k = 0..context-1.

    Args:
        frames: number of generated frames T.
        context: frames per window C.
        overlap: frames shared by neighbouring windows O, less than `context`.
        offset: shift of all windows, drawn anew for each denoising step, 0..context-1.

    Returns:
        list: one list of frame numbers (0-based among the generated frames) per window.
    """
    _check(frames, context, overlap)
    if frames <= context:
        return [list(range(frames))]
    return [[(start + k + offset) % frames for k in range(context)] for start in range(0, frames, context - overlap)]


def open_windows(frames: int, *, context: int, overlap: int, offset: int) -> list[list[int]]:
    """Open-ended schedule: the video's end is not tied to its beginning. Every window is `context` long.

    Windows start every `context - overlap` frames, shifted by `offset`; those that would stick out at either end are
    moved inside.

    Args: as `uniform_windows`. Returns: as `uniform_windows`, windows in order of time, none twice.
    """
    _check(frames, context, overlap)
    if frames <= context:
        return [list(range(frames))]
    step, last = context - overlap, frames - context
    starts = range(offset % step - step, last + step, step)
    return [list(range(s, s + context)) for s in sorted({min(max(s, 0), last) for s in starts})]


SCHEDULES: dict[str, Schedule] = {"uniform": uniform_windows, "uniform_open": open_windows}


def window_schedule(name: str) -> Schedule:
    """Look up a schedule by name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"context schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def _check(frames: int, context: int, overlap: int) -> None:
    if frames < 1:
        raise ValueError(f"{frames} frames to generate; at least 1 is needed")
    if context < 1 or not 0 <= overlap < context:
        raise ValueError(f"context_frames={context}, context_overlap={overlap}: expected 0 <= overlap < context")
