"""What the page does with an image and a video: looks at both, and animates in the queue.

Studio.look(...)    how well they fit, and a preview, in a second or two
Studio.submit(...)  an animation in the queue; then `jobs.progress`, `jobs.cancel`, `Studio.result`
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdyna.config.infer import InferConfig
from xdyna.config.loader import compose, names
from xdyna.config.page import PageConfig
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256
from xdyna.core.progress import Watch
from xdyna.core.resources import resource
from xdyna.page.jobs import Job, Jobs
from xdyna.page.uploads import Upload, take_image, take_video
from xdyna.page.words import CROPS, for_visitors

if TYPE_CHECKING:
    from xdyna.page.preview import Look
    from xdyna.pipelines.animate import Animation
    from xdyna.pipelines.model import Model
    from xdyna.pipelines.plan import Request

MODES = {
    "exact": "exact - the model's own steps, slowest",
    "fast": "fast - a better solver, about a third of the time",
    "preview": "preview - a first look: few steps, small, 4 seconds at most",
    "lowmem": "lowmem - as exact, for small graphics cards",
    "few_step": "few steps - a distilled model",
}
"""Presets in the order of the list; others of configs/preset follow."""
SEARCHES = {
    "auto": "where it helps",
    "all": "in every frame, slow",
    "off": "never",
}
"""Values of `crowd`: where everybody in the video is searched for."""
_NO_MODES = ("puppet_face",)  # presets that say what is driven, not how it is sampled
_MOST_STEPS = 100
_SEEDS = 2**32 - 1
_MOST_PEOPLE = 100


@dataclass(frozen=True)
class Sample:
    """Media in the box whose keypoints are known, recognised by content.

    Attributes:
        media: the image or video.
        points: its keypoints.
    """

    media: Path
    points: Path

    @cached_property
    def sha256(self) -> str:
        """Of the media."""
        return file_sha256(self.media)

    def is_in(self, upload: Upload) -> bool:
        """Whether a visitor sent it back."""
        return upload.path.stat().st_size == self.media.stat().st_size and file_sha256(upload.path) == self.sha256


SAMPLE_IMAGE = Sample(resource("assets", "demo", "reference.png"), resource("assets", "demo", "reference.npz"))
SAMPLE_VIDEO = Sample(resource("assets", "demo", "driving.mp4"), resource("assets", "demo", "driving.npz"))


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for, as it comes in: anything may stand here.

    Attributes:
        image: where the upload lies.
        video: where the upload lies.
        mode: a preset.
        frames: at most so many; 0 or None for all that are allowed.
        steps: denoising steps; 0 or None for those of the mode.
        seed: of the noise.
        align: fit the person in the video to the one in the image: as `align=auto` does.
        person: which person of the video; 0 is the largest.
        crowd: where everybody in the video is searched for, of `SEARCHES`.
        crop: what of the image is kept, of `CROPS`.
        force: go on where the image and the video do not suit each other.
    """

    image: str | None
    video: str | None
    mode: str = "fast"
    frames: float | None = None
    steps: float | None = None
    seed: float | None = 42
    align: bool = False
    person: float | None = 0
    crowd: str = "auto"
    crop: str = "published"
    force: bool = False


class Studio:
    """Animates for visitors.

    Args:
        root: folder of its own for everything that is written; whoever made it removes it.
        uploads: folder in which uploads lie.
        limits: what visitors may ask for.
        checkpoint: pipeline folder or its name; None for the default.
        debug: print tracebacks of failed work on the standard error.

    Raises:
        UsageError: no such checkpoint.
        WeightsError: it is incomplete.
    """

    def __init__(
        self, root: Path, uploads: Path, limits: PageConfig, *, checkpoint: Path | None = None, debug: bool = False
    ) -> None:
        from xdyna.pipelines.model import load

        self.root, self.uploads, self.limits, self.debug = root, uploads, limits, debug
        self.checkpoint = load(checkpoint, InferConfig(device=limits.device, dtype=limits.dtype)).checkpoint
        self.modes = modes()
        # Hydra's state is global, and visitors come in threads: everything is composed here.
        self.presets = {name: compose(InferConfig, "infer", [f"preset={name}"]).config for name in self.modes}
        self.puppet_faces = compose(InferConfig, "infer", ["preset=puppet_face"]).config.face_source
        self.perceiving = threading.Lock()  # one detector at a time beside the one of the running job
        self._loaded: tuple[Any, Model] | None = None
        self.jobs = Jobs(root / "jobs", limit=limits.queue, keep=60 * limits.keep_minutes, explain=self.explain)

    # --- what is asked for ------------------------------------------------------------------------------------------

    def settings(self, wish: Wish) -> InferConfig:
        """The settings of a wish.

        Raises:
            UsageError: a mode, a search or a crop that is none, or a number out of range.
        """
        _one_of(wish.mode, "mode of that name", self.modes)
        _one_of(wish.crowd, "such search for everybody", SEARCHES)
        _one_of(wish.crop, "such crop", CROPS)
        frames = _whole(wish.frames, "frames", 0, self.limits.max_frames)
        steps = _whole(wish.steps, "steps", 0, _MOST_STEPS)
        seed = _whole(wish.seed, "seed", 0, _SEEDS)
        person = _whole(wish.person, "person", 0, _MOST_PEOPLE)
        config = self.presets[wish.mode]
        if self.checkpoint.contract.guidance <= 1:  # it was trained to be sampled without
            config = dataclasses.replace(config, guidance=None, guidance_interval=[0.0, 1.0])
        larger = config.height is not None and config.height > self.checkpoint.size[0]
        larger = larger or wish.crop == "none"  # then the size is the image's
        return dataclasses.replace(
            config,
            frames=min(frames or self.limits.max_frames, config.frames or self.limits.max_frames),
            steps=steps or config.steps,
            seed=config.seed if seed is None else seed,
            height=None if larger else config.height,  # a preview is not larger than what the model makes
            width=None if larger else config.width,
            align="auto" if wish.align else "none",
            crop=wish.crop,
            person=person or 0,
            crowd=wish.crowd,
            device=self.limits.device,
            dtype=self.limits.dtype,
        )

    def request(self, wish: Wish, folder: Path) -> tuple[Request, InferConfig, list[str]]:
        """Copy and check the files of a wish.

        Args:
            wish: of the visitor.
            folder: where files are copied to, and where the result goes.

        Returns:
            The request, its settings, and notes for the visitor.

        Raises:
            ValueError: something that cannot be used; the message says what to do.
        """
        from xdyna.pipelines.plan import Request

        settings = self.settings(wish)
        image = take_image(wish.image, self.uploads, folder, self.limits)
        video = take_video(wish.video, self.uploads, folder, self.limits)
        own_image, own_video = not SAMPLE_IMAGE.is_in(image), not SAMPLE_VIDEO.is_in(video)
        notes = [f"your {image.note}" if own_image else "the sample's puppet"]
        notes.append(f"your {video.note}" if own_video else "the sample's dance")
        if own_image and self.checkpoint.folder.name.startswith("xdyna-tiny"):
            notes.append("the model here knows rendered puppets only: of a photo of a person it makes little")
        if not own_image and own_video:
            if settings.align == "none":
                notes.append("a person has not the puppet's size and place, so the person is fitted to it")
            settings = dataclasses.replace(settings, align="auto", face_source=self.puppet_faces)
        unused = settings.align == "none" and settings.crop == "none"
        request = Request(
            image.path,
            video.path if own_video else SAMPLE_VIDEO.points,
            out=folder / "result.mp4",
            face_video=None if own_video else video.path,
            ref_keypoints=None if own_image or unused else SAMPLE_IMAGE.points,
            force=bool(wish.force),
        )
        return request, settings, notes

    # --- the look before --------------------------------------------------------------------------------------------

    def look(self, wish: Wish) -> Look:
        """How well the image and the video fit, and a preview of the control images; files are removed again.

        Raises:
            ValueError: something that cannot be used; the message says what to do.
        """
        from xdyna.page.preview import look_at

        folder = self.jobs.new_folder("look")
        try:
            request, settings, notes = self.request(wish, folder)
            with self.perceiving:
                found = look_at(request, settings, self.checkpoint, cache_dir=self.root / "keypoints")
            return dataclasses.replace(found, notes=[for_visitors(note) for note in (*notes, *found.notes)])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # --- animating --------------------------------------------------------------------------------------------------

    def submit(self, wish: Wish) -> Job:
        """Let an animation wait in the queue.

        Raises:
            Busy: the queue is full.
            ValueError: something that cannot be used; the message says what to do.
        """

        def prepare(folder: Path) -> tuple[str, Callable[[Job, Watch], Any]]:
            from xdyna.pipelines.driving import open_driving

            request, settings, notes = self.request(wish, folder)
            own_faces = None if request.face_video is None else Path(request.face_video)
            driving = open_driving(request.driving, face_video=own_faces, fps=settings.fps, frames=settings.frames)
            count = len(driving.rows)

            def work(job: Job, watch: Watch) -> Animation:
                for note in notes:
                    watch.say(note)
                return self._animate(request, settings, watch)

            return f"{wish.mode}, {count} frame{'s' if count > 1 else ''}", work

        return self.jobs.submit(prepare)

    def _animate(self, request: Request, settings: InferConfig, watch: Watch) -> Animation:
        """What the queue runs. The keypoints of visitors are cached in the page's folder, not in the user's."""
        from xdyna.pipelines.animate import make

        said = watch
        watch = dataclasses.replace(said, tell=lambda text: said.say(for_visitors(text)))
        watch.step("loading the model", 0, 1)
        model = self._model(settings)
        _ = model.pipeline
        watch.step("loading the model", 1, 1)
        return make(request, model, settings=settings, watch=watch, cache_dir=self.root / "keypoints", resumable=False)

    def _model(self, settings: InferConfig) -> Model:
        """The model of a mode; the last one stays loaded."""
        from xdyna.pipelines.model import load

        kind = (settings.scheduler, tuple(settings.lora), settings.low_memory)
        if self._loaded is None or self._loaded[0] != kind:
            self._loaded = None  # its memory is needed
            self._loaded = kind, load(self.checkpoint.folder, settings)
        return self._loaded[1]

    def result(self, name: str) -> Job:
        """A job that is done.

        Raises:
            Unknown: there is no such job.
            UsageError: it is not done.
        """
        job = self.jobs.get(name)
        if job.state == "failed":
            raise UsageError(job.error)
        if job.state != "done":
            raise UsageError(f"this animation is not done: it is {job.state}")
        return job

    # --- messages ---------------------------------------------------------------------------------------------------

    def explain(self, error: BaseException) -> str:
        """A sentence for the visitor, without the paths of this machine; what is no message of ours goes to the log."""
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return "the memory is full; take the mode lowmem, a smaller video or fewer frames"
        if self.debug:
            traceback.print_exception(error)
        if isinstance(error, ValueError | OSError):
            return for_visitors(self.without_paths(str(error)))
        if not self.debug:
            print(f"unexpected error: {type(error).__name__}: {error} (--debug shows more)", file=sys.stderr)
        return f"something went wrong here ({type(error).__name__}); whoever runs this page finds more in its log"

    def without_paths(self, text: str) -> str:
        """A text in which files are called by their own names."""
        for folder in (self.root, self.uploads, self.checkpoint.folder.parent, SAMPLE_IMAGE.media.parent):
            text = re.sub(rf"{re.escape(str(folder))}(/[^/\s'\"]+)*/", "", text)
        return text

    def close(self) -> None:
        """Cancel everything."""
        self.jobs.close()


def modes() -> dict[str, str]:
    """The modes that there are: name -> what it is."""
    there = [name for name in names("preset") if name not in _NO_MODES]
    ordered = [name for name in MODES if name in there] + [name for name in there if name not in MODES]
    return {name: MODES.get(name, name) for name in ordered}


def _one_of(value: Any, what: str, choices: Iterable[str]) -> None:
    """Check a choice.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"there is no {what}; expected one of {', '.join(choices)}")


def _whole(value: Any, name: str, low: int, high: int) -> int | None:
    """A whole number in its range, or None.

    Raises:
        UsageError: something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not low <= value <= high:
        raise UsageError(f"{name} is {str(value)[:20]}; expected a whole number from {low} to {high}")
    if value != int(value):
        raise UsageError(f"{name} is {value:g}; expected a whole number from {low} to {high}")
    return int(value)
