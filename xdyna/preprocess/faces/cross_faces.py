"""Cross-identity faces of a finished data set: for every human clip, somebody else's face with the clip's expression.

    faces/faces.json            reenactor, seed, counts, why clips have none
    faces/ab/CLIP_ID.npz        what `write_faces` writes

Who lends the face follows from the seed and the clip's id: one of the other groups of the data set, never the clip's
own, of the same split where it has another. A group lends its calmest, most frontal, not too small face. A clip for
which nobody's face works stays without and is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xdyna.config.data import DataError
from xdyna.core.errors import FileError
from xdyna.data.addresses import local_copy
from xdyna.data.face_files import FORMAT, damaged, read_arrays, seen, write_faces
from xdyna.data.records import MANIFEST, ClipRecord, place
from xdyna.data.sources import Faces
from xdyna.data.store import Dataset, read_dataset, write_if_changed, write_manifest
from xdyna.media import read_frames
from xdyna.preprocess.faces.reenact import FaceReenactor, Portrait, ReenactError, portrait_penalty

SUMMARY = "faces/faces.json"
REASONS = {
    "no_face": "the clip shows no face",
    "no_other": "no other group of the data set has a face to lend",
    "no_portrait": "no face is found in the images of the others that were tried",
    "unreadable": "the video cannot be read",
}
"""Why a clip has no other face."""

_TRIES = 4  # others that a clip asks before it stays without
_SMALL = 100.0  # px; faces of smaller extent are worse portraits, by `_SMALL_COST` per halving
_SMALL_COST = 0.15
_REACH = 2.2  # of the part of the images that is worked on, in largest face extents from the faces
_KEPT = 64  # portraits in memory


@dataclass(frozen=True)
class FacesSummary:
    """What `add_faces` did.

    Attributes:
        made: clips that got a face now.
        kept: clips that had one.
        failed: reason by clip, see `REASONS`.
    """

    made: int
    kept: int
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of clips without a face by reason, most frequent first."""
        return dict(Counter(self.failed.values()).most_common())


def add_faces(
    folder: Path, reenactor: FaceReenactor, *, seed: int, progress: Callable[[int], None] = lambda done: None
) -> FacesSummary:
    """Give every human clip of a data set another identity's face; files that are there already are kept.

    Args:
        folder: a finished data set; its manifest's column `faces` is brought up to date.
        reenactor: makes the images.
        seed: of who lends the face.
        progress: called with the number of human clips that are done.

    Returns:
        What was done.

    Raises:
        DataError: no finished data set, damaged files, or faces made with another reenactor or seed.
        MediaError: the folder cannot be written.
    """
    dataset = read_dataset(folder)
    settings: dict[str, object] = {"reenactor": reenactor.name, "version": reenactor.version, "seed": seed}
    _check_settings(folder / SUMMARY, settings)
    humans = [record for record in dataset.records if record.kind == "human"]
    pool = _Pool(dataset, humans)
    faces, failed, made = {}, {}, 0
    for done, record in enumerate(humans):
        progress(done)
        name = place("faces", record.clip_id, ".npz")
        if (folder / name).is_file():
            _check_frames(folder / name, record)
        else:
            try:
                result, lender = _reenact(dataset, record, reenactor, pool, seed=seed)
            except ReenactError as error:
                failed[record.clip_id] = error.reason
                continue
            write_faces(folder / name, result, recipe={"clip": record.clip_id, **settings, "other": lender})
            made += 1
        faces[record.clip_id] = name
    progress(len(humans))
    write_manifest(folder / MANIFEST, [replace(r, faces=faces.get(r.clip_id, "")) for r in dataset.records])
    summary = FacesSummary(made, len(faces) - made, failed)
    _write_summary(folder / SUMMARY, settings, clips=len(faces), failed=failed)
    return summary


class _Pool:
    """Who can lend a face: one image of each group.

    Args:
        dataset: the data set.
        humans: its clips with people.
    """

    def __init__(self, dataset: Dataset, humans: Sequence[ClipRecord]) -> None:
        self._dataset = dataset
        self._groups: dict[tuple[str, str], list[ClipRecord]] = defaultdict(list)
        for record in humans:
            self._groups[record.split, record.group or record.source_id].append(record)
        self._best: dict[tuple[str, str], tuple[ClipRecord, int] | None] = {}
        self._portraits: OrderedDict[tuple[str, str], Portrait | None] = OrderedDict()

    def own(self, record: ClipRecord) -> Portrait | None:
        """The clip's own person, calm; None where no face of the group can be read."""
        return self._portrait((record.split, record.group or record.source_id))

    def others(self, record: ClipRecord, *, seed: int) -> list[tuple[str, str]]:
        """The other groups in the order in which they are asked, those of the same split alone if there are any."""
        own = record.group or record.source_id
        keys = sorted(key for key in self._groups if key[1] != own and self._choice(key) is not None)
        keys = [key for key in keys if key[0] == record.split] or keys
        digest = hashlib.sha256(record.clip_id.encode()).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
        return [keys[k] for k in rng.permutation(len(keys))]

    def lend(self, key: tuple[str, str]) -> tuple[Portrait | None, str]:
        """The portrait of a group, and which frame of which clip it is."""
        choice = self._choice(key)
        assert choice is not None
        return self._portrait(key), f"{choice[0].clip_id}:{choice[1]}"

    def _choice(self, key: tuple[str, str]) -> tuple[ClipRecord, int] | None:
        """Clip and row of the best face of a group; None where it shows none."""
        if key not in self._best:
            points, where = [], []
            for record in self._groups[key]:
                face = self._dataset.arrays(record).face
                rows = np.flatnonzero(seen(face))
                points.append(face[rows])
                where += [(record, int(row)) for row in rows]
            faces = np.concatenate(points)
            self._best[key] = where[int(np.argmin(_portrait_cost(faces)))] if where else None
        return self._best[key]

    def _portrait(self, key: tuple[str, str]) -> Portrait | None:
        choice = self._choice(key)
        if choice is None:
            return None
        if key not in self._portraits:
            record, row = choice
            arrays = self._dataset.arrays(record)
            try:
                self._portraits[key] = _cut(record, arrays.frame_index[[row]], arrays.face[[row]])
            except ReenactError:
                self._portraits[key] = None
            if len(self._portraits) > _KEPT:
                self._portraits.popitem(last=False)
        self._portraits.move_to_end(key)
        return self._portraits[key]


def _portrait_cost(faces: np.ndarray) -> np.ndarray:
    """Restlessness, and something for small faces. Args: faces: (N, 68, 3). Returns: (N,)."""
    extent = np.maximum(np.ptp(faces[..., :2], axis=1).max(axis=1), 1)
    return np.asarray(portrait_penalty(faces) + _SMALL_COST * np.maximum(np.log2(_SMALL / extent), 0))


def _cut(record: ClipRecord, frame_index: np.ndarray, face: np.ndarray) -> Portrait:
    """One frame of a clip as a portrait."""
    frames, corner = _frames(record, frame_index, face)
    points = face[0] - [*corner, 0]
    return Portrait(frames[0], points.astype(np.float32), f"clip '{record.clip_id}', frame {int(frame_index[0])}")


def _frames(record: ClipRecord, frame_index: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of a clip's frames that its faces and their surroundings lie in, and its corner (left, top), px."""
    points = face[seen(face), :, :2]
    reach = _REACH * float(np.ptp(points, axis=1).max())
    left, top = np.clip(points.min(axis=(0, 1)) - reach, 0, [record.width - 1, record.height - 1]).astype(int).tolist()
    right, bottom = np.clip(points.max(axis=(0, 1)) + reach, 1, [record.width, record.height]).astype(int).tolist()
    rows, columns = (
        slice(record.crop_top + top, record.crop_top + bottom),
        slice(record.crop_left + left, record.crop_left + right),
    )
    try:
        with local_copy(record.path) as local:
            frames = np.stack([frame[rows, columns] for frame in read_frames(local, frame_index.tolist())])
    except (FileError, OSError, ImportError) as error:
        raise ReenactError(f"clip '{record.clip_id}' cannot be read: {error}", reason="unreadable") from error
    if len(frames) != len(frame_index) or frames.shape[1:3] != (bottom - top, right - left) or not frames.size:
        raise ReenactError(
            f"clip '{record.clip_id}': its video has other frames than when the data set was made; preprocess it again",
            reason="unreadable",
        )
    return frames, (left, top)


def _reenact(
    dataset: Dataset, record: ClipRecord, reenactor: FaceReenactor, pool: _Pool, *, seed: int
) -> tuple[Faces, str]:
    """Somebody else's face for a clip, and whose."""
    arrays = dataset.arrays(record)
    if not seen(arrays.face).any():
        raise ReenactError(f"clip '{record.clip_id}' shows no face; leave it without", reason="no_face")
    order = pool.others(record, seed=seed)
    if not order:
        raise ReenactError(
            f"clip '{record.clip_id}': no other group has a face to lend; add videos of other people", reason="no_other"
        )
    frames, corner = _frames(record, arrays.frame_index, arrays.face)
    landmarks: np.ndarray = arrays.face - np.array([*corner, 0], dtype=np.float32)
    for key in order[:_TRIES]:
        portrait, lender = pool.lend(key)
        if portrait is None:
            continue
        try:
            part = reenactor.reenact(frames, landmarks, portrait, own=pool.own(record))
        except ReenactError as error:
            if error.reason != "no_portrait":
                raise
            continue
        return _whole(part, record, corner), lender
    raise ReenactError(f"clip '{record.clip_id}': none of the others' images can be used", reason="no_portrait")


def _whole(part: Faces, record: ClipRecord, corner: tuple[int, int]) -> Faces:
    """Faces of a part of the image in the whole image."""
    left, top = corner
    count, height, width = part.frames.shape[:3]
    frames = np.zeros((count, record.height, record.width, 3), dtype=np.uint8)
    frames[:, top : top + height, left : left + width] = part.frames
    landmarks = part.landmarks.copy()
    landmarks[seen(landmarks), :, :2] += np.array(corner, dtype=np.float32)
    return Faces(frames, landmarks)


def _check_frames(path: Path, record: ClipRecord) -> None:
    """See that a file that is kept belongs to its clip."""
    arrays = read_arrays(path)
    if len(arrays["ends"]) != record.frames or arrays["size"].tolist() != [record.height, record.width]:
        raise damaged(path, f"it is not of the {record.frames} frames of {record.height} x {record.width} px")


def _check_settings(path: Path, settings: dict[str, object]) -> None:
    """Remember how the faces of a data set are made, or see that it is the same as before."""
    if not path.is_file():
        _write_summary(path, settings, clips=0, failed={})
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{name} {there[name]!r} (now {value!r})" for name, value in settings.items() if there[name] != value
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' is damaged ({error}); remove the folder 'faces' and make them again") from error
    if differing:
        raise DataError(
            f"'{path.parent}' holds faces made with {', '.join(differing)}; give the same to continue, or "
            f"remove the folder"
        )


def _write_summary(path: Path, settings: dict[str, object], *, clips: int, failed: dict[str, str]) -> None:
    tree = {"format": FORMAT, **settings, "clips": clips, "failed": dict(sorted(failed.items()))}
    write_if_changed(path, (json.dumps(tree, indent=1) + "\n").encode())
