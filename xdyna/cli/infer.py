"""Animate a picture: `scripts/infer.py`. Arguments -> plan -> perception -> sampling -> files."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tqdm import tqdm

from xdyna.cli.arguments import Command
from xdyna.cli.infer_args import PROGRAM, numbered, parser, prepare
from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256
from xdyna.core.manifest import peak_memory, write_manifest
from xdyna.core.quiet import quiet_libraries
from xdyna.media.image import read_image
from xdyna.models.attention import require_xformers
from xdyna.perception.errors import NoFaceError
from xdyna.pipelines import batch
from xdyna.pipelines.controls import Conditions, make_conditions, read_person
from xdyna.pipelines.crop import fit_image, published_crop
from xdyna.pipelines.driving import Driving, open_driving
from xdyna.pipelines.folder import UNTRAINED_MARK, Checkpoint, find_checkpoint, load_pipeline, pick_device, pick_dtype
from xdyna.pipelines.outputs import OutputFiles, describe, free_names, reserve, write_outputs
from xdyna.pipelines.plan import Plan, print_plan
from xdyna.pipelines.resume import PartialRun, fingerprint
from xdyna.pipelines.untrained import build_untrained
from xdyna.pipelines.xdyna import Precomputed, XDynaPipeline, to_uint8

OUTPUTS = Path("outputs")


@dataclasses.dataclass(frozen=True)
class Job:
    """One animation to make.

    Attributes:
        reference: picture of the person.
        drive: driving file.
        out: video to write; None for an automatic name.
        kind: kind of driving file, see `DRIVE_KINDS`.
        face_video: for pose videos and key points: where the faces come from.
        ref_keypoints: key points of the person in the reference; None looks for it where it is needed.
        prompt: text; None takes the config's.
    """

    reference: Path
    drive: Path
    out: Path | None = None
    kind: str = "auto"
    face_video: Path | None = None
    ref_keypoints: Path | None = None
    prompt: str | None = None

    def inputs(self) -> list[Path]:
        """Files that the run reads."""
        files = (self.reference, self.drive, self.face_video, self.ref_keypoints)
        return [path for path in files if path is not None]

    def names(self) -> dict[str, Path]:
        """What automatic output names are made of."""
        return {"reference": self.reference, "driving": self.drive, "folder": OUTPUTS}


def main(argv: Sequence[str]) -> int:
    """Run `scripts/infer.py`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(parser(), argv, work, prepare=prepare, numbered=numbered)


def work(command: Command[InferConfig]) -> int:
    """Make the animations. Args: command: what is asked for. Returns: exit code."""
    args, config = command.flags, command.config
    quiet_libraries()
    if config.attention == "xformers":
        require_xformers()
    jobs = _jobs(args)
    checkpoint = find_checkpoint(args.checkpoint, build_untrained)
    if checkpoint.untrained:
        print(f"note: {checkpoint.folder}: {(checkpoint.folder / UNTRAINED_MARK).read_text().strip()}")
    device = pick_device(config.device)
    runner = Runner(
        checkpoint,
        config,
        device=device,
        dtype=pick_dtype(config.dtype, device),
        cache_dir=args.cache_dir,
        overwrite=args.overwrite,
        argv=command.argv,
    )
    if args.dry_run:
        for job in jobs:
            print_plan(runner.plan(job), checkpoint, runner.config, device=device, dtype=runner.dtype)
        return 0
    if len(jobs) == 1:
        runner.run(jobs[0])
        return 0
    return batch.run_all(jobs, runner.run)


class Runner:
    """Makes animations with one checkpoint, which is loaded when the first one needs it.

    Args:
        checkpoint: weights.
        config: settings of all runs.
        device: where the networks run.
        dtype: of the networks.
        cache_dir: where key points are cached; None for the default folder.
        overwrite: whether existing outputs may be replaced.
        argv: arguments, for the manifest.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: InferConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        cache_dir: Path | None,
        overwrite: bool,
        argv: list[str],
    ) -> None:
        if config.guidance is None:
            config = dataclasses.replace(config, guidance=checkpoint.guidance)
        self.checkpoint, self.config, self.device, self.dtype = checkpoint, config, device, dtype
        self.cache_dir, self.overwrite, self.argv = cache_dir, overwrite, argv
        self._pipeline: XDynaPipeline | None = None
        self._hashes: dict[str, str] | None = None

    def plan(self, job: Job, files: OutputFiles | None = None) -> Plan:
        """Everything that can be known before perception and sampling; checks the inputs.

        Args:
            job: the animation.
            files: names that were reserved for it; None takes those that are free now.

        Raises:
            UsageError: a missing file or options that contradict each other.
            ValueError: an unreadable reference or driving file, an output that is in the way.
        """
        if not job.reference.exists():
            raise UsageError(
                f"--ref {job.reference}: no such file; expected a picture of a person (jpg, png, webp, ...)"
            )
        reference = read_image(job.reference)
        size = (self.config.height or self.checkpoint.size[0], self.config.width or self.checkpoint.size[1])
        driving = open_driving(
            job.drive,
            kind=job.kind,
            face_video=job.face_video,
            fps=self.config.fps,
            stride=self.config.stride,
            frames=self.config.frames,
        )
        context = min(len(driving.rows), self.config.context_frames)
        if context > self.checkpoint.max_context:
            raise UsageError(
                f"context_frames is {context}, but the motion modules of {self.checkpoint.folder} know "
                f"{self.checkpoint.max_context} frames; use at most that"
            )
        person = None
        if job.ref_keypoints is not None:
            if self.config.align == "none":
                raise UsageError("--ref-keypoints tell what to align to; give --align too, or leave them out")
            person = read_person(job.ref_keypoints, reference.shape[:2])
        files = files or free_names(job.out, **job.names())
        files.check_free(overwrite=self.overwrite, inputs=job.inputs())
        return Plan(reference, size, driving, files, self._use_face(driving), person)

    def run(self, job: Job) -> OutputFiles:
        """Make one animation. Returns: the files written."""
        with reserve(job.out, overwrite=self.overwrite, inputs=job.inputs(), **job.names()) as files:
            return self._run(job, files)

    def _run(self, job: Job, files: OutputFiles) -> OutputFiles:
        start = time.perf_counter()
        plan = self.plan(job, files)
        pipeline = self._load()
        conditions = self._conditions(plan)
        if conditions.summary is not None:
            print(f"driving: {conditions.summary}")
        face = conditions.face is not None
        crop = published_crop(plan.reference.shape, plan.size, face=face)
        fitted = fit_image(plan.reference, crop, face=face)
        inputs = {
            "reference": {"path": str(job.reference), "sha256": file_sha256(job.reference)},
            "driving": {"path": str(job.drive), "sha256": file_sha256(job.drive), "kind": plan.driving.kind},
        }
        for name, path in (("face_video", job.face_video), ("ref_keypoints", job.ref_keypoints)):
            if path is not None:
                inputs[name] = {"path": str(path), "sha256": file_sha256(path)}
        config = dataclasses.replace(self.config, prompt=self.config.prompt if job.prompt is None else job.prompt)
        result = {
            "config": dataclasses.asdict(config),
            "size": plan.size,
            "rows": plan.driving.rows.tolist(),
            "face": face,
            "conditions": conditions.digest(),
            "inputs": {name: {k: v for k, v in entry.items() if k != "path"} for name, entry in inputs.items()},
            "weights": self._weights(),
            "dtype": str(self.dtype),
        }
        partial = PartialRun(plan.files.video, fingerprint(result))
        try:
            before = time.perf_counter()
            latents = self._sample(pipeline, plan.reference, fitted, conditions, config, partial)
            sampling = time.perf_counter() - before
            decoded = pipeline.decode_frames(latents, chunk=config.vae_chunk)
            write_outputs(
                plan.files,
                (frame for chunk in decoded for frame in to_uint8(chunk)),
                reference=fitted,
                driving=plan.driving,
                conditions=conditions,
                keep_audio=config.keep_audio,
                overwrite=self.overwrite,
            )
        except BaseException:
            if partial.save():
                print(f"\npartial result kept in {partial.path}; the same command goes on from there")
            raise
        partial.remove()
        seconds, memory = time.perf_counter() - start, peak_memory(self.device)
        cost = {
            "seconds": round(seconds, 2),
            "sampling_seconds": round(sampling, 2),
            "peak_memory_bytes": memory,
        }
        self._write_manifest(plan, conditions, {**result, "inputs": inputs, **cost})
        for path in self._written(plan):
            print(f"wrote {path}")
        print(f"{describe(plan.files)}; took {seconds:.1f} s (sampling {sampling:.1f} s), peak memory {_gib(memory)}")
        return plan.files

    def _written(self, plan: Plan) -> tuple[Path, ...]:
        return plan.files.all(keypoints=plan.driving.kind == "video")

    def _use_face(self, driving: Driving) -> bool:
        wanted = self.config.face
        if self.config.align != "none" and driving.kind == "pose":
            raise UsageError("--align needs key points; it cannot move the skeletons of a pose video")
        if self.config.puppet_face and (self.config.align == "none" or driving.face_video is None):
            raise UsageError(
                "--puppet-face makes the faces of a person in a video on the figure in the picture; give --align too, "
                "and drive with a video of a person"
            )
        if wanted and not self.checkpoint.has_face:
            raise UsageError(f"--face: {self.checkpoint.folder} has no face ControlNet; leave out --face")
        if wanted and driving.face_video is None:
            raise UsageError(
                f"--face: {driving.path} holds no faces (it is a {driving.kind} file); drive with a video of a person, "
                "or name the video it was made from with --face-video"
            )
        possible = self.checkpoint.has_face and driving.face_video is not None
        return possible if wanted is None else wanted

    def _conditions(self, plan: Plan) -> Conditions:
        def make(face: bool) -> Conditions:
            return make_conditions(
                plan.driving,
                self.config,
                reference=plan.reference,
                size=plan.size,
                face=face,
                cache_dir=self.cache_dir,
                person=plan.person,
            )

        try:
            return make(plan.face)
        except NoFaceError as error:
            if self.config.face is not None:
                raise
            print(f"note: going on without face control: {error}")
            return make(False)

    def _load(self) -> XDynaPipeline:
        if self._pipeline is None:
            use_face = self.checkpoint.has_face and self.config.face is not False
            self._pipeline = load_pipeline(
                self.checkpoint, device=self.device, dtype=self.dtype, face=use_face, attention=self.config.attention
            )
            self._pipeline.set_progress_bar_config(desc="denoising", unit="window")
        return self._pipeline

    def _weights(self) -> dict[str, str]:
        if self._hashes is None:
            files = tqdm(self.checkpoint.weight_files(), desc="hashing weights", unit="file", leave=False)
            self._hashes = self.checkpoint.hashes(files)
        return self._hashes

    def _sample(
        self,
        pipeline: XDynaPipeline,
        reference: np.ndarray,
        fitted: np.ndarray,
        conditions: Conditions,
        config: InferConfig,
        partial: PartialRun,
    ) -> torch.Tensor:
        """Latents of the clip; goes on from a partial result of the same run."""
        assert config.guidance is not None, "the checkpoint's own was put in"
        generator = torch.Generator("cpu").manual_seed(config.seed)
        # Other schedulers keep a history of steps, which is not stored: their runs start over.
        resumable = isinstance(pipeline.scheduler, DDIMScheduler)
        done, latents = (partial.load() if resumable else None) or (0, None)
        if done:
            print(f"going on after step {done} of {config.steps} (found {partial.path})")
        given = Precomputed(
            reference_latents=pipeline.encode_reference(Image.fromarray(fitted), generator), start_step=done
        )

        def after_step(_: Any, step: int, __: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if resumable:
                partial.update(step + 1, state["latents"])
            return state

        sampled = pipeline(
            reference,
            conditions.pose,
            conditions.face,
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            context_frames=config.context_frames,
            context_overlap=config.context_overlap,
            context_schedule=config.context_schedule,
            similarity_prior=config.similarity_prior,
            generator=generator,
            latents=latents,
            precomputed=given,
            callback_on_step_end=after_step,
            output_type="latent",
        )
        assert isinstance(sampled.frames, torch.Tensor)
        return sampled.frames

    def _write_manifest(self, plan: Plan, conditions: Conditions, result: dict[str, Any]) -> None:
        entries = {
            **result,
            "checkpoint": {"folder": str(self.checkpoint.folder), "untrained": self.checkpoint.untrained},
            "device": str(self.device),
            "fps": float(plan.driving.fps),
            "driving_fps": plan.driving.source_fps,
            "alignment": dataclasses.asdict(alignment) if (alignment := conditions.placement.alignment) else None,
            "perception": dataclasses.asdict(conditions.summary) if conditions.summary else None,
            "outputs": {path.name: file_sha256(path) for path in self._written(plan)[:-1]},
        }
        write_manifest(plan.files.manifest, entries, argv=self.argv, overwrite=self.overwrite)


def _jobs(args: argparse.Namespace) -> list[Job]:
    if args.batch is not None:
        if args.ref or args.drive or args.out or args.face_video or args.ref_keypoints:
            raise UsageError(
                "--batch names the references, driving files and outputs itself; leave out --ref, --drive, --out, "
                "--face-video, --ref-keypoints"
            )
        return [
            Job(
                entry["ref"],
                entry["drive"],
                out=Path(entry["out"]) if "out" in entry else None,
                kind=entry.get("kind", "auto"),
                face_video=entry.get("face_video"),
                prompt=entry.get("prompt"),
            )
            for entry in batch.read_pairs(args.batch)
        ]
    if args.ref is None or args.drive is None:
        raise UsageError(
            "give a picture with --ref and a driving file with --drive (or pairs with --batch); see --help"
        )
    return [
        Job(
            args.ref,
            args.drive,
            out=args.out,
            kind=args.drive_kind,
            face_video=args.face_video,
            ref_keypoints=args.ref_keypoints,
        )
    ]


def _gib(memory: dict[str, int]) -> str:
    return ", ".join(f"{value / 2**30:.2f} GiB ({name})" for name, value in memory.items()) or "unknown"
