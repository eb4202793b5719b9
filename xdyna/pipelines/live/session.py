"""A live animation: `live` opens everything and runs it; `LiveSession` makes one window after the other.

What a window shows depends on its frames, on those before and on the seed alone, not on when they came.
"""

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xdyna.config.live import LiveConfig
from xdyna.core.device import pick_device
from xdyna.core.errors import UsageError
from xdyna.core.files import path_sha256
from xdyna.core.manifest import peak_memory, write_manifest
from xdyna.core.progress import Watch
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines.attention import Run
from xdyna.pipelines.controls import find_reference
from xdyna.pipelines.crop import fit_image
from xdyna.pipelines.live.backlog import Backlog, LiveInput, LiveReport
from xdyna.pipelines.live.controls import LiveControls
from xdyna.pipelines.live.sinks import CallbackSink, FileSink, FrameCallback, RawSink, Sink
from xdyna.pipelines.live.sources import Source, open_source
from xdyna.pipelines.live.window import WindowDenoiser
from xdyna.pipelines.model import Model, load
from xdyna.pipelines.outputs import OutputFiles, reserve
from xdyna.pipelines.plan import ImageLike, Request, choose_crop, read_person, read_reference

_POLL = 0.05  # s between looks at what came in
_LEAVE = 2.0  # s that the source has to end


class LiveSession:
    """A person in an image, ready to be moved window by window.

    Args:
        reference: the image.
        model: the weights.
        settings: of the run.
        faces: whether the input has images of faces.
        ref_keypoints: of the person in the reference, where no detector sees it.
        say: given notes, a sentence each.

    Attributes:
        settings: with what the checkpoint decides.
        face: whether the face ControlNet runs.

    Raises:
        UsageError: settings that the model cannot follow, or a missing file.
        PerceptionError: nobody in the reference, where alignment is asked for.
    """

    def __init__(
        self,
        reference: ImageLike,
        model: Model,
        settings: LiveConfig,
        *,
        faces: bool = False,
        ref_keypoints: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        checkpoint = model.checkpoint
        contract = checkpoint.contract
        if settings.window > checkpoint.max_context:
            raise UsageError(
                f"new + held is {settings.window}, but the motion modules of {checkpoint.folder} know "
                f"{checkpoint.max_context} frames; use at most that"
            )
        guidance = contract.guidance if settings.guidance is None else settings.guidance
        self.settings = dataclasses.replace(settings, guidance=guidance)
        possible = checkpoint.has_face and (faces or settings.face_source is not None)
        if settings.face and not possible:
            lacks = "the input has no faces" if checkpoint.has_face else f"{checkpoint.folder} has no face ControlNet"
            raise UsageError(f"--face: {lacks}; leave out --face, or give a --face-source with keypoints")
        self.face = possible if settings.face is None else settings.face
        picture = read_reference(reference)
        size = settings.height or checkpoint.size[0], settings.width or checkpoint.size[1]
        person = read_person(ref_keypoints, picture.shape[:2]) if ref_keypoints is not None else None
        if person is None and settings.align != "none":
            person = find_reference(picture, settings.animation())

        def look() -> Person | None:
            try:
                return find_reference(picture, settings.animation())
            except (PerceptionError, OSError):
                return None

        crop, person = choose_crop(settings.crop, picture, size, face=self.face, person=person, look=look)
        fitted = fit_image(picture, crop, face=self.face)
        looked_at = picture if contract.reference == "whole" else fitted
        self.denoiser = WindowDenoiser(model.pipeline, fitted, looked_at, self.settings)
        self.controls = LiveControls(
            settings, contract, crop, reference=(picture.shape[0], picture.shape[1]), person=person, face=self.face,
            say=say,
        )  # fmt: skip
        self._held: Tensor | None = None
        self._images: dict[str, np.ndarray] = {}
        self._start = 0

    @property
    def wanted(self) -> int:
        """New frames of the next window: the first one has nothing to hold."""
        return self.settings.window - (0 if self._held is None else self._held.shape[2])

    def window(self, inputs: Sequence[LiveInput]) -> np.ndarray:
        """Make the next window.

        Args:
            inputs: N frames, at most `wanted`; where they are fewer, the last one's control images are repeated to fill
                the window, and these frames are thrown away.

        Returns:
            np.ndarray: uint8 (N, H, W, 3).
        """
        count, kept = len(inputs), 0 if self._held is None else self._held.shape[2]
        images = self.controls(inputs)
        whole = {}
        for name, values in images.items():
            before = self._images.get(name, np.repeat(values[:1], kept, axis=0))  # the first faces: held frames too
            filling = np.repeat(values[-1:], self.wanted - count, axis=0)
            whole[name] = np.concatenate([before[len(before) - kept :], values, filling])
        latents = self.denoiser.denoise(whole, start=self._start, held=self._held)
        made = latents[:, :, : kept + count]
        frames = self.denoiser.decode(made[:, :, kept:])
        hold = min(self.settings.held, kept + count)
        if hold:
            self._held = made[:, :, -hold:].clone()
            self._images = {name: values[kept + count - hold : kept + count] for name, values in whole.items()}
        self._start += kept + count - hold
        return frames

    def run_shapes(self) -> Run:
        """What decides the shapes of a denoising step."""
        settings = self.settings
        return Run(
            size=self.controls.size,
            frames=settings.window,
            branches=2 if (settings.guidance or 0) > 1 else 1,
            text_rows=1 if settings.prompt == settings.negative_prompt else 2,
        )

    def warm_up(self) -> float:
        """Run windows of nothing, so that the first real one is as quick as all. Returns: s of the last one."""
        height, width = self.controls.size
        shapes = {"pose": 3, "face": 6} if self.face else {"pose": 3}
        images = {name: np.zeros((self.settings.window, height, width, n), np.uint8) for name, n in shapes.items()}
        spent = 0.0
        for count in (self.settings.window, self.settings.new):
            begin = time.monotonic()
            latents = self.denoiser.denoise(images, start=0, held=None)
            self.denoiser.decode(latents[:, :, :count])
            spent = time.monotonic() - begin
        self.denoiser.forget()
        return spent


def live(
    reference: ImageLike,
    driving: str | Path | PoseTrack,
    *,
    out: str | Path | None = None,
    on_frame: FrameCallback | None = None,
    settings: LiveConfig | None = None,
    model: Model | str | Path | None = None,
    ref_keypoints: str | Path | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
    argv: Sequence[str] = (),
) -> LiveReport:
    """Animate the person in an image with what comes in, as it comes in, until it ends.

    Args:
        reference: the person: a file, a PIL image or uint8 (H, W, 3).
        driving: see `xdyna.pipelines.live.sources.open_source`: a file at its own speed, "camera:N", "-", "tcp:...".
        out: the video (or folder) to write, beside which the manifest goes; "-" for raw bytes on the standard output;
            None with `on_frame` for no file.
        on_frame: called with each frame and its time in the input, in place of `out`.
        settings: of the run; None for the defaults.
        model: what `xdyna.load` gave, or a pipeline folder, or its name.
        ref_keypoints: keypoints of the person in the reference, where no detector sees it.
        overwrite: whether existing files may be replaced.
        watch: `tell` gets notes and reports, `cancel` is asked often: True ends the run, and the files are kept.
        argv: arguments of the program, for the manifest.

    Returns:
        LiveReport: rate, latency, what was dropped, the files.

    Raises:
        UsageError: arguments that contradict each other, or a missing file.
        ValueError: an input that cannot be used; the message says what to do.
    """
    settings, watch = settings or LiveConfig(), watch or Watch()
    if (out is None) == (on_frame is None):
        raise UsageError("a live animation needs either `out` or `on_frame`; give one of the two")
    if not isinstance(model, Model):
        settings = dataclasses.replace(settings, dtype=live_dtype(settings))
        model = load(model, settings.animation())
    points = Path(ref_keypoints) if ref_keypoints is not None else None
    raw = str(out) == "-" or settings.save == "raw"
    if raw and on_frame is None and str(out) != "-":
        raise UsageError(f"--out {out}: save=raw writes to the standard output; give --out -, or another --save")
    source = open_source(driving, settings, watch.say)
    drive = driving if isinstance(driving, PoseTrack) else Path(source.name)
    request = Request(reference, drive, ref_keypoints=points)
    given = [path for path in request.inputs() if path.is_file()]
    with _output(request, given, settings, out, on_frame, source, overwrite) as (sink, files):
        session = LiveSession(
            reference, model, settings, faces=source.faces, ref_keypoints=points, say=watch.say
        )  # fmt: skip
        kernels = model.settle_attention(settings.attention, session.run_shapes())
        watch.say(
            f"{source.name} -> {session.controls.size[0]}x{session.controls.size[1]} (HxW) at {source.fps:.4g} fps, "
            f"{settings.new} new + {settings.held} held frames, {settings.steps} steps, face control "
            f"{'on' if session.face else 'off'}, {model.device}, {str(model.dtype).removeprefix('torch.')}"
        )
        report, error = run(session, source, sink, settings=settings, watch=watch, device=model.device)
    if files is not None and report.frames:
        entries = {
            "config": dataclasses.asdict(session.settings),
            "source": {"name": source.name, "fps": source.fps},
            "inputs": {path.name: path_sha256(path) for path in given},
            "weights": model.hashes(),
            "contract": dataclasses.asdict(model.checkpoint.contract),
            "device": str(model.device),
            "dtype": str(model.dtype),
            "attention": kernels,
            "threads": torch.get_num_threads(),
            "live": report.numbers(),
            "outputs": {files.video.name: path_sha256(files.video)},
        }
        write_manifest(files.manifest, entries, argv=argv, overwrite=overwrite)
        report.written = (files.video, files.manifest)
    if error is not None:
        raise error
    return report


@contextmanager
def _output(
    request: Request, given: list[Path], settings: LiveConfig, out: str | Path | None, on_frame: FrameCallback | None,
    source: Source, overwrite: bool,
) -> Iterator[tuple[Sink, OutputFiles | None]]:  # fmt: skip
    """The sink, and the names of its files where it writes some; they are taken while the block runs."""
    if on_frame is not None:
        yield CallbackSink(on_frame), None
    elif str(out) == "-":
        yield RawSink(1, wait=settings.wait), None
    else:
        names = {**request.names(), "driving": Path("live"), "save": settings.save}
        with reserve(Path(str(out)), overwrite=overwrite, inputs=given, **names) as files:
            yield FileSink(files.video, save=settings.save, fps=source.fps, overwrite=overwrite), files


def run(
    session: LiveSession,
    source: Source,
    sink: Sink,
    *,
    settings: LiveConfig,
    watch: Watch,
    device: torch.device,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[LiveReport, Exception | None]:
    """Take frames from a source and give windows to a sink, until the input ends, `watch.cancel` says so, or nobody
    reads.

    Args:
        session: makes windows.
        source: of the frames; runs in a thread.
        sink: takes them.
        settings: of the run.
        watch: see `live`.
        device: for the memory's peak.
        clock: s.

    Returns:
        The report, and what the source failed with, after all that came before it was written.
    """
    report, backlog = LiveReport(), Backlog(latency=settings.latency, drop=settings.drop)
    backlog.busy = session.warm_up()
    feeder = _Feeder(source, backlog, lambda: session.wanted, settings.seconds)
    try:
        with sink:
            feeder.start()
            try:
                report.ended = _windows(session, feeder, sink, report, source.fps, settings, watch, clock)
            except BrokenPipeError as error:
                report.ended = f"nobody reads the output any more ({error.strerror or error})"
    finally:
        feeder.end()
    report.dropped += source.dropped
    report.lost = session.controls.lost
    report.memory = peak_memory(device)
    return report, feeder.error


def _windows(
    session: LiveSession, feeder: "_Feeder", sink: Sink, report: LiveReport, fps: float, settings: LiveConfig,
    watch: Watch, clock: Callable[[], float],
) -> str:  # fmt: skip
    """The loop. Returns: why it ended."""
    begin, told, slot = None, clock(), 0
    while True:
        if watch.cancel is not None and watch.cancel():
            return "stopped"
        inputs, dropped = feeder.take(session.wanted, clock)
        report.dropped += dropped
        if not inputs:
            if feeder.backlog.ended:
                return "the input ended"
            continue
        begin = inputs[0].arrived if begin is None else begin
        before, spent = clock(), time.process_time()
        frames = session.window(inputs)
        now = clock()
        feeder.backlog.took(now - before)
        report.busy.append(now - before)
        report.cpu.append(time.process_time() - spent)
        if settings.drop and report.windows == 2 and feeder.backlog.busy > settings.latency:
            watch.say(
                f"warning: a window takes {feeder.backlog.busy:.1f} s here, so that a latency of "
                f"{settings.latency:g} s cannot be had; take fewer steps, a smaller size or fewer new frames"
            )
        report.windows += 1
        for item, frame in zip(inputs, frames, strict=True):
            stands = max(1, round(item.time * fps) - slot + 1)  # what was dropped is filled, so that time is kept
            sink.write(frame, item.time, stands)
            slot += stands
            report.frames += 1
            report.latencies.append(clock() - item.arrived)
        report.seconds = clock() - begin
        if settings.every and clock() - told >= settings.every:
            told = clock()
            recent = statistics.median(report.latencies[-settings.window * 4 :])
            watch.say(
                f"{report.seconds:6.1f} s  {report.rate:5.2f} frames/s  latency {recent:.2f} s  dropped "
                f"{report.dropped}  window {report.busy[-1]:.2f} s  waiting {len(feeder.backlog.pending)}"
            )


class _Feeder:
    """Runs a source in a thread and lets its frames wait."""

    def __init__(self, source: Source, backlog: Backlog, count: Callable[[], int], seconds: float | None) -> None:
        self.source, self.backlog, self.count, self.seconds = source, backlog, count, seconds
        self.error: Exception | None = None
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="live source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let the source end; one that is stuck in its driver is left behind."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_LEAVE)

    def take(self, count: int, clock: Callable[[], float]) -> tuple[list[LiveInput], int]:
        """The frames of the next window, or none yet after a short wait."""
        with self._changed:
            if not self.backlog.ready(count, clock()):
                self._changed.wait(_POLL)
            if not self.backlog.ready(count, clock()):
                return [], 0
            taken = self.backlog.take(count, clock())
            self._changed.notify_all()
            return taken

    def _run(self) -> None:
        try:
            for item in self.source.frames(self._stop):
                if self.seconds is not None and item.time >= self.seconds:
                    break
                with self._changed:
                    while self.backlog.full(self.count()) and not self._stop.is_set():
                        self._changed.wait(_POLL)
                    self.backlog.pending.append(item)
                    self._changed.notify_all()
        except Exception as error:  # whatever it is, it is raised where the run ends
            self.error = error
        finally:
            with self._changed:
                self.backlog.ended = True
                self._changed.notify_all()


def live_dtype(settings: LiveConfig) -> str:
    """The data type that "auto" stands for: bfloat16 on CPUs with instructions for it, else as everywhere.

    Args:
        settings: of the run.
    """
    if settings.dtype == "auto" and pick_device(settings.device).type == "cpu" and fast_bfloat16():
        return "bfloat16"
    return settings.dtype


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by itself (AVX512-BF16 or AMX), as torch reports."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)
