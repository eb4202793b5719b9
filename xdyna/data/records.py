"""What preprocessing reads and writes, as values: sources, clips, skips, and where they lie in a data set folder.

DATASET/
  dataset.json            format, options, counts
  manifest.parquet        one `ClipRecord` a row
  skipped.parquet         one `Skip` a row
  clips/ab/CLIP_ID.npz    numbers of a clip (`ClipArrays`)
  faces/ab/CLIP_ID.npz    another identity's face over the same frames, where asked for (`cross_faces`)
  thumbnails/...          one image a clip or skip, for the report
  README.md report.html   card of the data set, skip report
  .work/                  one record per finished video; what resuming looks at
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FORMAT = "xdyna-dataset-1"
DATASET_FILE, MANIFEST, SKIPPED = "dataset.json", "manifest.parquet", "skipped.parquet"


def place(folder: str, name: str, suffix: str) -> str:
    """Where a file of a clip lies below the data set folder: FOLDER/ab/NAME.SUFFIX, 256 folders whatever the names.

    Args:
        folder: "clips", "faces", "thumbnails", ...
        name: of the clip (its id), or of a skip.
        suffix: with its dot, for example ".npz".

    Returns:
        The relative path with "/" as separator.
    """
    return f"{folder}/{hashlib.sha256(name.encode()).hexdigest()[:2]}/{name}{suffix}"


@dataclass(frozen=True)
class VideoSource:
    """One raw video that was asked for.

    Attributes:
        id: name, unique in a run; letters, digits, '-', '_' and '.'.
        path: local path or fsspec address (s3://..., memory://...).
        kind: "human" or "scene" where the list says so; None: to be found out.
        caption: text; "" by default.
        license: as the list says it; "".
        group: videos of one group never lie in two splits (cuts of one film, one dancer); the id by default.
    """

    id: str
    path: str
    kind: str | None = None
    caption: str = ""
    license: str = ""
    group: str = ""


@dataclass(frozen=True)
class ClipRecord:
    """One clip that was kept: consecutive frames of one shot of a video. All numbers of pixels are in upright frames.

    Attributes:
        clip_id: SOURCE_ID-NNNN, unique in the data set.
        source_id: of the `VideoSource`.
        path: of the video, as it was given.
        sha256: of the video's bytes.
        kind: "human" or "scene".
        caption: text.
        license: text.
        group: see `VideoSource`.
        split: "train", "validation" or "test".
        start: first frame of the clip, 0-based, in display order, after the video's rotation.
        frames: number of frames T.
        fps: of the video, frames/s.
        crop_left: of the part that is not letterbox, px.
        crop_top: px.
        width: of that part, px.
        height: px.
        arrays: path of the .npz below the data set folder.
        person_height: median height of the person over that of the crop; 0 for scenes.
        confidence: mean confidence of body joints; 0 for scenes.
        motion: mean length of the optical flow, shares of the image's height per second.
        camera: mean motion of the background, the same unit.
        phash: 64-bit perceptual hash of the middle frame, 16 hexadecimal digits.
        faces: path of the other identity's faces below the data set folder; "" for none.
    """

    clip_id: str
    source_id: str
    path: str
    sha256: str
    kind: str
    caption: str
    license: str
    group: str
    split: str
    start: int
    frames: int
    fps: float
    crop_left: int
    crop_top: int
    width: int
    height: int
    arrays: str
    person_height: float
    confidence: float
    motion: float
    camera: float
    phash: str
    faces: str = ""


FORMER_FIELDS = {"latents": "", "licence": "license"}
"""Of clips in data sets of earlier versions, with what they are called today; "" for those that readers leave out."""


def clip_record(values: Mapping[str, Any]) -> ClipRecord:
    """A record out of stored values, of earlier versions too.

    Args:
        values: by the names of the fields.

    Returns:
        The record; nothing of it is checked.

    Raises:
        TypeError: fields are missing or unknown.
    """
    today = {FORMER_FIELDS.get(name, name): value for name, value in values.items()}
    return ClipRecord(**{name: value for name, value in today.items() if name})


@dataclass(frozen=True)
class Skip:
    """A video or a part of one that was not kept.

    Attributes:
        source_id: of the `VideoSource`.
        path: of the video.
        stage: step that refused it: "read", "probe", "cut", "kind", "people", "quality", "duplicate" or "error".
        reason: one of `REASONS`.
        detail: a sentence with the numbers.
        start: first frame, -1 for the whole video.
        frames: number of frames, 0 for the whole video.
        thumbnail: path below the data set folder; "" for none.
    """

    source_id: str
    path: str
    stage: str
    reason: str
    detail: str
    start: int = -1
    frames: int = 0
    thumbnail: str = ""


REASONS: dict[str, str] = {
    "unreadable": "the file cannot be read as a video",
    "too_short": "fewer frames than a clip needs",
    "too_small": "the image is smaller than asked for",
    "no_person": "nobody was found",
    "several_people": "more than one person",
    "partly_people": "people come and go: neither a human clip nor a scene",
    "small_person": "the person is small in the image",
    "low_confidence": "joints are uncertain",
    "occluded": "too many joints are hidden",
    "no_face": "the face is seen too rarely",
    "static": "nothing moves",
    "camera_shake": "the camera moves too much",
    "text_overlay": "text lies over the image",
    "duplicate": "nearly the same images as another clip",
    "unwanted_kind": "not of a kind that was asked for",
    "error": "processing failed",
}
"""Why something is skipped, in the words of the report."""


@dataclass(frozen=True)
class ClipArrays:
    """Numbers of a clip of T frames, in px of the cropped image (height, width of the record).

    Attributes:
        body: float32 (T, 18, 3), x, y, confidence; zeros for scenes.
        hands: float32 (T, 2, 21, 3).
        face: float32 (T, 68, 3).
        boxes: float32 (T, 4), left, top, right, bottom of the person; zeros for scenes.
        mask: bool (T, h, w), the person at low resolution (longer side 64); all False for scenes.
        times: float64 (T,), display times in the video, s.
        frame_index: int64 (T,), frames of the video.
    """

    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray
    times: np.ndarray
    frame_index: np.ndarray


@dataclass(frozen=True)
class VideoOutcome:
    """All that came of one video: what a worker hands back, and what `.work/` keeps.

    Attributes:
        source_id: of the `VideoSource`.
        sha256: of the video's bytes; "" where it cannot be read.
        seconds: duration of the video, s.
        clips: kept (their split and duplicates are decided later, over all videos).
        skips: what was not.
    """

    source_id: str
    sha256: str
    seconds: float
    clips: tuple[ClipRecord, ...] = ()
    skips: tuple[Skip, ...] = field(default=())
