"""A live animation: `live` opens everything and runs it; `LiveSession` makes one window after the other.

What a window shows depends on its frames, on those before and on the seed alone, not on when they came.
"""

import dataclasses
import functools
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
from xdyna.core.manifest import write_manifest
from xdyna.core.progress import Watch
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines.attention import Run
from xdyna.pipelines.controls import find_reference
from xdyna.pipelines.crop import fit_image
from xdyna.pipelines.live.backlog import LiveInput, LiveReport
from xdyna.pipelines.live.controls import LiveControls
from xdyna.pipelines.live.loop import run
from xdyna.pipelines.live.sinks import CallbackSink, FileSink, FrameCallback, RawSink, Sink
from xdyna.pipelines.live.sources import Source, open_source
from xdyna.pipelines.live.window import WindowDenoiser
from xdyna.pipelines.model import Model, load
from xdyna.pipelines.outputs import OutputFiles, reserve
from xdyna.pipelines.plan import ImageLike, Request, choose_crop, read_person, read_reference
from xdyna.pipelines.suitability import Suitability


class LiveSession:
    """A person in an image, ready to be moved window by window.

    Args:
        reference: the image.
        model: the weights; LoRA weights among them are merged into the others, once and for good.
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

        @functools.cache
        def look() -> Person | None:
            try:
                return find_reference(picture, settings.animation())
            except (PerceptionError, OSError):
                return None

        crop, person = choose_crop(settings.crop, picture, size, face=self.face, person=person, look=look)
        person = person or look()  # to say how well it suits the input
        fitted = fit_image(picture, crop, face=self.face)
        looked_at = picture if contract.reference == "whole" else fitted
        model.merge_lora()
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
        """Make the next window, and decode it: uint8 (N, H, W, 3). Args: inputs: see `latents`."""
        return self.decode(self.latents(inputs))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Frames of what `latents` gave, uint8 (N, H, W, 3). May run beside the next window's `latents`."""
        return self.denoiser.decode(latents)

    def latents(self, inputs: Sequence[LiveInput]) -> Tensor:
        """Make the next window: one after the other, as each holds the last one's end.

        Args:
            inputs: N frames, at most `wanted`; where they are fewer, the last one's control images are repeated to fill
                the window, and these frames are thrown away.

        Returns:
            Tensor: (1, 4, N, h, w) float32.
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
        hold = min(self.settings.held, kept + count)
        if hold:
            self._held = made[:, :, -hold:].clone()
            self._images = {name: values[kept + count - hold : kept + count] for name, values in whole.items()}
        self._start += kept + count - hold
        return made[:, :, kept:]

    def run_shapes(self) -> Run:
        """What decides the shapes of a denoising step."""
        settings = self.settings
        return Run(
            size=self.controls.size,
            frames=settings.window,
            branches=2 if (settings.guidance or 0) > 1 else 1,
            text_rows=1 if settings.prompt == settings.negative_prompt else 2,
        )


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
        # On a CPU, windows give PyTorch's own kernel other shapes (`cpu_attention`) than the ones that are measured.
        own = settings.attention == "auto" and model.device.type == "cpu"
        kernels = model.settle_attention("native" if own else settings.attention, session.run_shapes())
        watch.say(
            f"{source.name} -> {session.controls.size[0]}x{session.controls.size[1]} (HxW) at {source.fps:.4g} fps, "
            f"{settings.new} new + {settings.held} held frames, {settings.steps} steps, face control "
            f"{'on' if session.face else 'off'}, {model.device}, {str(model.dtype).removeprefix('torch.')}"
        )
        report, error = run(session, source, sink, settings=settings, watch=watch, device=model.device)
        session.controls.judge()  # where it ended before that
    suits = session.controls.suitability or Suitability((), "no frame of the input was drawn")
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
            "threads": report.threads or torch.get_num_threads(),
            "suitability": suits.entries(),
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
