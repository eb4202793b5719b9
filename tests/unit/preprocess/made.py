"""Made-up records, arrays and a stand-in for the processing of a video, quick and without any detector."""

import hashlib
import os
import time
from pathlib import Path

import cv2
import numpy as np

from xdyna.config.preprocess import PreprocessOptions
from xdyna.core.files import file_sha256
from xdyna.data.records import ClipArrays, ClipRecord, Skip, VideoOutcome, VideoSource, place
from xdyna.data.store import write_arrays, write_if_changed
from xdyna.media import MediaError


class Here:
    """An engine in this very process."""

    def __init__(self, workers: int | None = None) -> None:
        pass

    def run(self, tasks, work):
        for number, task in enumerate(tasks):
            yield number, work(task)


def arrays_of(frames: int = 5, *, start: int = 0, seed: int = 0, mask: tuple[int, int] = (64, 37)) -> ClipArrays:
    rng = np.random.default_rng(seed)
    points = [rng.random((frames, *shape), dtype=np.float32) for shape in ((18, 3), (2, 21, 3), (68, 3), (4,))]
    rows = np.arange(start, start + frames)
    return ClipArrays(*points, rng.random((frames, *mask)) > 0.5, rows / 25.0, rows)


def record_of(clip_id: str = "film-0000", **changes: object) -> ClipRecord:
    source = clip_id.rpartition("-")[0]
    values: dict = {
        "clip_id": clip_id, "source_id": source, "path": f"{source}.mp4", "sha256": "0" * 64, "kind": "human",
        "caption": "", "license": "", "group": source, "split": "train", "start": 0, "frames": 5, "fps": 25.0,
        "crop_left": 0, "crop_top": 0, "width": 64, "height": 112, "arrays": place("clips", clip_id, ".npz"),
        "person_height": 0.5, "confidence": 0.9, "motion": 0.1, "camera": 0.0, "phash": "0" * 16,
    }  # fmt: skip
    return ClipRecord(**{**values, **changes})


def outcome_of(source: VideoSource, sha256: str, folder: Path, *, clips: int = 2) -> VideoOutcome:
    """Clips and a skip whose numbers follow from the hash; their files are written."""
    records = []
    for number in range(clips):
        clip_id = f"{source.id}-{number:04d}"
        value = hashlib.sha256(f"{sha256}{number}".encode()).hexdigest()[:16]
        record = record_of(
            clip_id, path=source.path, sha256=sha256, split="", phash=value, start=number * 10, caption=source.caption,
            group=source.group or source.id,
        )  # fmt: skip
        write_arrays(folder / record.arrays, arrays_of(start=number * 10, seed=int(value[:6], 16)))
        write_image(folder / place("thumbnails", clip_id, ".jpg"), seed=number)
        records.append(record)
    image = place("thumbnails", f"{source.id}-skip-000099", ".jpg")
    write_image(folder / image, seed=99)
    skip = Skip(source.id, source.path, "quality", "static", "Nothing moves.", 99, 7, image)
    return VideoOutcome(source.id, sha256, 4.0, tuple(records), (skip,))


def write_image(path: Path, *, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    write_if_changed(path, cv2.imencode(".jpg", image)[1].tobytes())


def quick_process(source: VideoSource, local: Path, options: PreprocessOptions, folder: Path) -> VideoOutcome:
    """Instead of `process_video`. The content of a "video" says what happens to it; every call is noted."""
    text = local.read_bytes()
    calls = os.environ.get("XDYNA_TEST_CALLS")
    if calls:
        with Path(calls).open("a") as file:
            file.write(f"{source.id}\n")
    if b"defect" in text:
        raise IndexError("a defect of the program")
    if b"full" in text:
        raise MediaError("'clips/x.npz' cannot be written: the disk is full")
    if b"crash" in text:
        os._exit(9)
    if b"slow" in text:
        time.sleep(0.3)
    return outcome_of(source, file_sha256(local), folder)
