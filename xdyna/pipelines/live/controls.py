"""Control images of a live animation: the person is followed, aligned by the first frames that show it, and drawn."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xdyna.config.contract import ConditionContract
from xdyna.config.live import LiveConfig
from xdyna.core.errors import UsageError
from xdyna.media.image import CropResize
from xdyna.perception.align import align_track
from xdyna.perception.draw import draw_styled
from xdyna.perception.errors import NoFaceError
from xdyna.perception.face_patch import Box, face_box, filled_landmarks, global_patch, local_patch
from xdyna.perception.follow import follow
from xdyna.perception.types import Person, PoseTrack, missing_points
from xdyna.pipelines.controls import Placement, face_source, placed_body
from xdyna.pipelines.crop import published_crop
from xdyna.pipelines.live.backlog import LiveInput
from xdyna.pipelines.suitability import Suitability, assess

_PATIENCE = 8  # frames without the person after which the N-th largest is followed instead
_HISTORY = 64  # frames that alignment, and what a face usually looks like, are measured on


class LiveControls:
    """Turns the frames of a window into control images. Knows what came before; never what comes.

    Args:
        settings: of the run.
        contract: of the model.
        crop: of the reference to the video.
        reference: (H, W) of the reference, px.
        person: in the reference, where it is known; needed to align.
        face: whether faces are made for the face ControlNet.
        say: given notes, a sentence each.
    """

    def __init__(
        self,
        settings: LiveConfig,
        contract: ConditionContract,
        crop: CropResize,
        *,
        reference: tuple[int, int],
        person: Person | None,
        face: bool,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.contract, self.crop, self.size = settings, contract, crop, crop.size
        self.reference, self.person, self.face, self.say = reference, person, face, say
        self.source = face_source(settings.face_source) if settings.face_source is not None and face else None
        self.lost = 0
        self.suitability: Suitability | None = None  # of the first frames that show the person; None before
        self._placement: Placement | None = None
        self._input_size: tuple[int, int] | None = None
        self._last: Person | None = None
        self._misses = 0
        self._count = 0
        self._history: PoseTrack | None = None
        self._unusable = False
        self._landmarks: np.ndarray | None = None
        self._box: Box | None = None

    def __call__(self, inputs: Sequence[LiveInput]) -> dict[str, np.ndarray]:
        """Control images of new frames.

        Args:
            inputs: N of them, those that are made only.

        Returns:
            dict: "pose" uint8 (N, H, W, 3); "face" uint8 (N, H, W, 6), not before a face was seen.

        Raises:
            UsageError: images of another size than before.
        """
        track = self._track(inputs)
        whole = _joined(self._history, track)
        if self._placement is None:
            self._place(whole)
        self._history = whole.select(slice(-_HISTORY, None))
        if self._placement is None:  # not yet aligned: nobody is drawn
            return {"pose": np.zeros((len(inputs), *self.size, 3), np.uint8)}
        self.judge(enough=self.settings.align_frames)
        placed = self._placed(track)
        faces = None
        if self.face:
            past = len(whole) - len(track)
            before = self._placed(whole.select(slice(0, past))) if past else None
            placed, faces = self._faces(placed, before, inputs)
        style = self.contract.pose
        people = zip(placed.body, placed.hands, placed.face, strict=True)
        images = {"pose": np.stack([draw_styled(*parts, size=self.size, style=style) for parts in people])}
        return images if faces is None else images | {"face": faces}

    # --- who ------------------------------------------------------------------------------------------------------

    def _track(self, inputs: Sequence[LiveInput]) -> PoseTrack:
        people = [self._follow(item) for item in inputs]
        rows = np.arange(self._count, self._count + len(inputs))
        self._count += len(inputs)

        def stacked(name: str, *shape: int) -> np.ndarray:
            return np.stack([missing_points(*shape) if one is None else getattr(one, name) for one in people])

        return PoseTrack(
            body=stacked("body", 18), hands=stacked("hands", 2, 21), face=stacked("face", 68),
            size=inputs[0].size, times=np.maximum.accumulate([max(item.time, 0.0) for item in inputs]),
            frame_index=rows,
        )  # fmt: skip

    def _follow(self, item: LiveInput) -> Person | None:
        """The person of a frame: who goes on from the last one; the last pose for a while, then nobody."""
        if self._input_size not in (None, item.size):
            raise UsageError(
                f"the input changed its size from {self._input_size} to {item.size} (H, W); expected one size"
            )
        self._input_size = item.size
        chosen: Person | None = None
        if self._last is None or self._misses > _PATIENCE:
            chosen = item.people[self.settings.person] if len(item.people) > self.settings.person else None
        elif item.image is None:
            chosen = item.people[0] if item.people else None
        elif item.people:
            chosen = follow([[self._last], item.people])[1]
        if chosen is not None:
            if self._misses and self._last is not None:
                self.say(f"at {item.time:.1f} s the person is back")
            self._last, self._misses = chosen, 0
            return chosen
        if not self._misses:
            self.say(f"at {item.time:.1f} s {'the person is lost' if self._last is not None else 'nobody is seen'}")
        self._misses, self.lost = self._misses + 1, self.lost + 1
        return self._last if self._misses <= self.settings.max_gap else None

    # --- where ----------------------------------------------------------------------------------------------------

    def _place(self, seen: PoseTrack) -> None:
        """Decide how driving images get into the video's: at once, or aligned once the person was seen often enough."""
        if self.settings.align == "none":
            self._placement = Placement(published_crop(seen.size, self.size, face=self.face))
            return
        found = seen.found
        if int(found.sum()) < self.settings.align_frames:
            return
        assert self.person is not None, "looked for before the first frame"
        _, report = align_track(seen.select(found), self.person, size=self.reference)
        if report.usable:
            self.say(f"alignment: {report}")
            for note in report.warnings:
                self.say(f"warning: {note}")
            self._placement = Placement(self.crop, report)
        elif not self._unusable:
            self._unusable = True
            self.say(f"the person cannot be aligned yet (score {report.score:.2f}), nobody is drawn until it can")

    def _placed(self, track: PoseTrack) -> PoseTrack:
        """In px of the video."""
        assert self._placement is not None
        report = self._placement.alignment
        if report is not None:

            def moved(points: np.ndarray) -> np.ndarray:
                xy = (report.scale * points[..., :2].astype(np.float64) + report.offset).clip(-1e6, 1e6)
                return np.concatenate([np.where(points[..., 2:] > 0, xy, 0), points[..., 2:]], axis=-1)

            points = (moved(track.body), moved(track.hands), moved(track.face))
            track = replace(track, body=points[0], hands=points[1], face=points[2], size=report.size)
        return track.transform(self._placement.crop)

    def judge(self, *, enough: int = 1) -> None:
        """Say how well image and input suit each other, once; nothing is refused: what comes in may still change.

        Args:
            enough: frames with the person that are needed.
        """
        seen = self._history
        if self.suitability is not None or self._placement is None or seen is None or seen.found.sum() < enough:
            return
        alignment = self._placement.alignment
        self.suitability = assess(
            seen,
            self.person,
            placed=self._placed(seen),
            shape=self.reference,
            crop=self.crop,
            aligned=None if alignment is None else alignment.scale,
        )
        for line in self.suitability.lines():
            self.say(line)

    # --- faces ----------------------------------------------------------------------------------------------------

    def _faces(
        self, placed: PoseTrack, before: PoseTrack | None, inputs: Sequence[LiveInput]
    ) -> tuple[PoseTrack, np.ndarray | None]:
        """Face patches, and the track with the landmarks that they were cut by; None before a face was seen."""
        frames: Sequence[np.ndarray | None]
        if self.source is not None:
            assert self.person is not None
            body = placed_body(self.person, self.crop, self.reference)
            try:
                acted = self.source(placed, body, history=before)
            except NoFaceError:
                return placed, None
            placed, frames = acted.track, list(acted.frames)
        else:
            assert self._placement is not None
            frames = [None if item.image is None else self._placement.image(item.image) for item in inputs]
        landmarks = placed.face if self._landmarks is None else np.concatenate([self._landmarks[None], placed.face])
        try:
            filled = filled_landmarks(landmarks)[-len(placed) :]
        except NoFaceError:
            return placed, None
        pairs = []
        for frame, points in zip(frames, filled, strict=True):
            self._box = face_box(points, size=self.size, previous=self._box)
            picture = np.zeros((*self.size, 3), np.uint8) if frame is None else frame
            pairs.append(
                np.concatenate([local_patch(picture, points, self._box), global_patch(picture, self._box)], axis=-1)
            )
        self._landmarks = np.concatenate([filled[-1], np.ones((68, 1), np.float32)], axis=-1)
        return placed, np.stack(pairs)


def _joined(first: PoseTrack | None, second: PoseTrack) -> PoseTrack:
    """One track after the other."""
    if first is None:
        return second
    names = ("body", "hands", "face", "frame_index")
    parts = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    times = np.maximum.accumulate(np.concatenate([first.times, second.times]))
    return replace(second, **parts, times=times)
