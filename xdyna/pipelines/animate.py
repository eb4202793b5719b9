"""A reference image and a driving video -> a video: the whole way.

    plan     = plan_animation(...)      size, crop, rate, frames, windows          pipelines/plan.py
    track    = perceive(plan)           keypoints per frame, cached                pipelines/controls.py
    examined(plan, track)               fitted, compared, refused or drawn          pipelines/examine.py
    controls = prepare(track, plan)     pose maps and face patches                 pipelines/controls.py
    latents  = sample(...)              denoising, window by window                pipelines/sampling.py
    write_outputs(decoded(...))         decoding, files                            pipelines/writing.py

Each step can be called by itself.
"""

import dataclasses
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from diffusers import DiffusionPipeline

from xdyna.config.infer import InferConfig
from xdyna.core.atomic import write_file
from xdyna.core.errors import FileError, UsageError
from xdyna.core.files import is_address, path_sha256
from xdyna.core.manifest import peak_memory, write_manifest
from xdyna.core.progress import Progress, Watch
from xdyna.core.ranks import Ranks
from xdyna.media.folder import frame_files
from xdyna.media.video import probe, read_frames
from xdyna.perception.errors import NoFaceError
from xdyna.pipelines.controls import Conditions, perceive, prepare
from xdyna.pipelines.examine import examined
from xdyna.pipelines.fetching import fetched
from xdyna.pipelines.model import Model, load
from xdyna.pipelines.outputs import OutputFiles, reserve
from xdyna.pipelines.plan import DrivingLike, ImageLike, Plan, Request, plan_animation
from xdyna.pipelines.resume import PartialRun, chosen_before, fingerprint
from xdyna.pipelines.sampling import decoded, sample
from xdyna.pipelines.suitability import Suitability
from xdyna.pipelines.writing import write_outputs

# Settings that say how inputs are fetched and frames are saved, and where they are made: a partial result goes on
# under others.
SAVING = ("keep_audio", "save", "device", "url_max_mb", "url_seconds")


class Frames(Sequence[np.ndarray]):
    """The frames of a video file, read when they are asked for: uint8 (H, W, 3) RGB each.

    Args:
        path: the video, or a folder of frames.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = len(frame_files(path)) if path.is_dir() else probe(path).frame_count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        chosen = range(self._count)[index]  # an IndexError where it is out of range
        if isinstance(chosen, range):
            wanted = sorted(chosen)
            found = dict(zip(wanted, read_frames(self.path, wanted), strict=True))
            return [found[number] for number in chosen]
        return next(read_frames(self.path, [chosen]))

    def __iter__(self) -> Iterator[np.ndarray]:
        return read_frames(self.path)

    def numpy(self) -> np.ndarray:
        """All frames at once, uint8 (T, H, W, 3)."""
        return np.stack(list(self))


@dataclass
class Animation:
    """A finished animation.

    Attributes:
        files: names of the video, the side-by-side video, the contact sheet, the manifest (and the keypoints).
        plan: what was done.
        manifest: everything that is needed to repeat it, as in the manifest's file.
        written: the files that were written, the manifest last.
        notes: what was said on the way.
    """

    files: OutputFiles
    plan: Plan
    manifest: dict[str, Any]
    written: tuple[Path, ...]
    notes: list[str] = field(default_factory=list)
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The video."""
        return self.files.video

    @property
    def frames(self) -> Frames:
        """The video's frames, read from the file."""
        return Frames(self.path)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Move the video and the files beside it.

        Args:
            path: new name of the video.
            overwrite: whether existing files may be replaced.

        Returns:
            The video's path.

        Raises:
            FileError: a file is in the way.
            UsageError: the name is of another kind of file.
        """
        files = OutputFiles.named(Path(path), self.files.save)
        if (taken := files.taken()) and not overwrite:
            raise FileError(f"{taken[0]} exists already; choose another name, or give overwrite=True")
        files.video.parent.mkdir(parents=True, exist_ok=True)
        keypoints = self.files.keypoints in self.written
        targets = files.all(keypoints=keypoints)
        for source, target in zip(self.files.all(keypoints=keypoints), targets, strict=True):
            shutil.move(source, target)
        self._rename_outputs(targets)
        self.files, self.written = files, targets
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
        return files.video

    def _rename_outputs(self, targets: Sequence[Path]) -> None:
        """Let the manifest name the files as they are called now."""
        hashes = self.manifest["outputs"].values()
        self.manifest["outputs"] = dict(zip([path.name for path in targets[:-1]], hashes, strict=True))
        stored = json.loads(targets[-1].read_text()) | {"outputs": self.manifest["outputs"]}
        write_file(targets[-1], (json.dumps(stored, indent=1) + "\n").encode())


def animate(
    reference: ImageLike,
    driving: DrivingLike,
    *,
    out: str | Path | None = None,
    settings: InferConfig | None = None,
    model: Model | DiffusionPipeline | str | Path | None = None,
    kind: str = "auto",
    face_video: str | Path | None = None,
    ref_keypoints: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    preview: str | Path | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | threading.Event | None = None,
    show: Callable[[np.ndarray], None] | None = None,
) -> Animation:
    """Animate the person in an image with the motion and the expression of a driving video.

    Args:
        reference: the person: a file, a PIL image or uint8 (H, W, 3). Every file may be an address (https, s3).
        driving: a video of a person, a pose video, a folder of frames or keypoints (.npz), or a track of
            `xdyna.track_person`.
        out: the video to write, beside which the other files go; None: temporary files, which `Animation.save` moves.
        settings: all settings; None for those of the `model`, or the published ones.
        model: what `xdyna.load` gave, for several animations with the same weights; a loaded `XDynaPipeline`, used as
            it is (on its device, with its scheduler and LoRA weights); a pipeline folder, or its name.
        kind: what the driving file is: "auto" (by its ending), "video", "pose" or "keypoints".
        face_video: for pose videos and keypoints: the video they were made from.
        ref_keypoints: keypoints of the person in the reference, where no detector sees it: for `align`, for
            `crop="person"`, and to tell what of the person the published crop cuts.
        overwrite: whether existing files may be replaced.
        force: go on where image and driving do not suit each other (`xdyna.pipelines.suitability`).
        preview: a PNG file to write before sampling: reference, fitted skeletons, crop.
        progress: called as (stage, done, total).
        cancel: asked often, or an event; True, or the event once it is set, ends the work with a `CancelledError`. As
            after an interruption, the same call with the same `out` goes on from there.
        show: given the frame in the middle as it stands after each step, uint8 (H, W, 3): noisy at first. Each costs
            the decoding of one frame.

    Returns:
        Animation: its frames and files.

    Raises:
        UsageError: arguments that contradict each other, or a missing file.
        ValueError: an input that cannot be used or fetched; the message says what to do.
        CancelledError: see `cancel`.
    """
    if isinstance(model, Model):
        settings = settings or model.settings
    else:
        settings = settings or InferConfig()
        model = load(model, settings)
    notes: list[str] = []
    temporary = tempfile.TemporaryDirectory(prefix="xdyna-") if out is None else None
    folder = Path(temporary.name) if temporary is not None else Path("outputs")
    target, drawn = (Path(path) if path is not None else None for path in (out, preview))
    faces, points = (path if path is None or is_address(path) else Path(path) for path in (face_video, ref_keypoints))
    request = Request(reference, driving, target, folder, kind, faces, points, force=force, preview=drawn)
    asked = cancel.is_set if isinstance(cancel, threading.Event) else cancel
    watch = Watch(progress, asked, notes.append, show)
    try:
        with fetched(request, settings, watch) as local:
            made = make(local, model, settings=settings, overwrite=overwrite, watch=watch, resumable=out is not None)
    except BaseException:
        if temporary is not None:  # else it is there for as long as somebody holds the error
            temporary.cleanup()
        raise
    return dataclasses.replace(made, notes=notes, _temporary=temporary)


def make(
    request: Request,
    model: Model,
    *,
    settings: InferConfig,
    overwrite: bool = False,
    watch: Watch | None = None,
    cache_dir: Path | None = None,
    argv: Sequence[str] = (),
    resumable: bool = True,
    ranks: Ranks | None = None,
) -> Animation:
    """Make one animation; what `animate` and the programs call.

    Args:
        request: files that go in and come out.
        model: the weights.
        settings: all settings.
        overwrite: whether existing outputs may be replaced.
        watch: the caller's callbacks.
        cache_dir: where keypoints are cached; None for the default folder.
        argv: arguments of the program, for the manifest.
        resumable: whether a partial result is kept for the next call; not of use for temporary files.
        ranks: processes that all call this with the same arguments, to make it together; process 0 writes.

    Returns:
        Animation: complete; in process 0.

    Raises:
        ValueError: see `animate`.
    """
    start, watch, ranks = time.perf_counter(), watch or Watch(), ranks or Ranks()
    model.check_fits(settings)
    names = {**request.names(), "save": settings.save}
    with ExitStack() as stack:
        if ranks.rank == 0:
            files = stack.enter_context(reserve(request.out, overwrite=overwrite, inputs=request.inputs(), **names))
            working = files.video
        else:
            files = OutputFiles(request.out or request.folder / "video", settings.save)  # which it does not write
            working = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xdyna-"))) / "video"
        plan = plan_animation(request, settings, model.checkpoint, files=files, overwrite=overwrite or ranks.rank > 0)
        for note in plan.notes:
            watch.say(note)
        if ranks.rank == 0:  # alone: the others find the keypoints in the cache
            ready = _prepared(plan, cache_dir, watch, working.parent, overwrite)
            result, inputs = _deciding(ready.plan, ready.conditions, model, watch)
        ranks.share()
        if ranks.rank > 0:
            plan = dataclasses.replace(plan, request=dataclasses.replace(request, preview=None))
            ready = _prepared(plan, cache_dir, watch, working.parent, overwrite)
            result, inputs = {}, {}
        plan, conditions = ready.plan, ready.conditions
        kernels = _attention(plan, model, working if resumable else None, ranks=ranks, watch=watch)
        result["attention"] = kernels
        keep = resumable and ranks.rank == 0
        choices = {"attention": kernels}
        partial = PartialRun(working, fingerprint(result), ranks=ranks, keep=keep, choices=choices)
        fitted = plan.fitted()
        try:
            before, processor = time.perf_counter(), time.process_time()
            latents = sample(model.pipeline, plan, fitted, conditions, partial=partial, watch=watch)
            sampling = time.perf_counter() - before
            each = ranks.collect(round(time.process_time() - processor, 2))
            frames = decoded(model.pipeline, latents, plan, partial)
            if ranks.rank > 0:
                for _ in frames:
                    pass
                return Animation(files, plan, {}, ())
            write_outputs(
                plan.files,
                frames,
                reference=fitted,
                driving=plan.driving,
                conditions=conditions,
                keep_audio=plan.settings.keep_audio,
                overwrite=overwrite,
                watch=watch,
            )
        except BaseException:
            if partial.save():
                watch.say(f"partial result kept in {partial.folder}; the same command goes on from there")
            else:
                partial.remove()
            raise
        partial.remove()
        written = files.all(keypoints=plan.driving.kind == "video")
        cost = {
            "seconds": round(time.perf_counter() - start, 2),
            "sampling_seconds": round(sampling, 2),
            "peak_memory_bytes": peak_memory(model.device),
            "processes": ranks.world,
            "sampling_processor_seconds": each,
        }
        entries = {
            **result,
            "config": dataclasses.asdict(plan.settings),
            "inputs": inputs,
            **cost,
            "window_offsets": partial.offsets,
            "suitability": ready.suitability.entries(),
            **_circumstances(plan, conditions, model, written),
        }
        write_manifest(files.manifest, entries, argv=argv, overwrite=overwrite)
        return Animation(files, plan, entries, written)


@dataclass(frozen=True)
class _Prepared:
    """What sampling begins with; `plan` is without face control where no face was found and nobody insists on it."""

    plan: Plan
    conditions: Conditions
    suitability: Suitability


def _prepared(plan: Plan, cache_dir: Path | None, watch: Watch, working: Path, overwrite: bool) -> _Prepared:
    """Perceive, compare, refuse what cannot become anything, draw."""
    track = perceive(plan, cache_dir=cache_dir, watch=watch)
    placed, suits = examined(plan, track, watch=watch, overwrite=overwrite)
    for line in suits.lines():
        watch.say(line)
    if not plan.request.force:
        suits.require()
    try:
        conditions = prepare(track, plan, watch=watch, folder=working, placed=placed)
    except NoFaceError as error:
        if plan.settings.face is not None:
            raise
        watch.say(f"note: going on without face control: {error}")
        plan = plan.without_face()
        conditions = prepare(track, plan, watch=watch, folder=working)
    if conditions.summary is not None:
        watch.say(f"driving: {conditions.summary}")
    return _Prepared(plan, conditions, suits)


def _attention(plan: Plan, model: Model, working: Path | None, *, ranks: Ranks, watch: Watch) -> dict[str, str]:
    """Choose the attention kernels: those of an interrupted run again, the same ones in all processes."""
    before = chosen_before(working).get("attention") if working is not None and ranks.rank == 0 else None
    asked, run = plan.settings.attention, plan.run_shapes()
    chosen = model.settle_attention(asked, run, kept=before) if ranks.rank == 0 else None
    shared: dict[str, str] = ranks.share(chosen)
    if ranks.rank > 0 and (mine := model.settle_attention(asked, run, kept=shared)) != shared:
        raise UsageError(
            f"process 0 computes attention with {shared}, process {ranks.rank} with {mine}, which is what its device "
            "has; give attention=native"
        )
    others = sorted(key for key, name in shared.items() if name != asked)
    if others and asked != "auto" and model.given is None:
        watch.say(f"note: attention={asked} cannot compute {', '.join(others)} (heads x width): native does")
    if before and before != shared:
        watch.say(f"note: begun with attention {before}, now {shared}: the run starts over")
    return shared


def _deciding(
    plan: Plan, conditions: Conditions, model: Model, watch: Watch
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """What decides the frames, for the fingerprint of a partial result; and the inputs with their paths."""
    inputs = plan.request.digests()
    inputs["driving"]["kind"] = plan.driving.kind
    without_paths = {
        name: {k: v for k, v in entry.items() if k not in ("path", "url")} for name, entry in inputs.items()
    }
    result = {
        "config": {k: v for k, v in dataclasses.asdict(plan.settings).items() if k not in SAVING},
        "size": plan.size,
        "crop": plan.crop.box,
        "rows": plan.driving.rows.tolist(),
        "face": conditions.face is not None,
        "conditions": conditions.digest(),
        "inputs": without_paths,
        "contract": dataclasses.asdict(plan.checkpoint.contract),
        "weights": model.hashes(watch),
        "dtype": str(model.dtype),
    }
    return result, inputs


def _circumstances(plan: Plan, conditions: Conditions, model: Model, written: Sequence[Path]) -> dict[str, Any]:
    alignment = conditions.placement.alignment
    return {
        "checkpoint": {"folder": str(model.checkpoint.folder), "untrained": model.checkpoint.untrained},
        "device": str(model.device),
        "fps": float(plan.driving.fps),
        "driving_fps": plan.driving.source_fps,
        "alignment": dataclasses.asdict(alignment) if alignment else None,
        "perception": dataclasses.asdict(conditions.summary) if conditions.summary else None,
        "outputs": {path.name: path_sha256(path) for path in written[:-1]},
    }
