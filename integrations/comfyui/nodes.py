"""The nodes: each is a thin call of xdyna's library."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from xdyna.config.infer import ALIGNMENTS, CROPS, CROWDS, DTYPES, POSE_BACKENDS, InferConfig
from xdyna.config.loader import compose
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256
from xdyna.core.progress import Watch
from xdyna.core.resources import resource
from xdyna.media.image import read_image
from xdyna.perception.smooth import OneEuro
from xdyna.perception.track import track_person
from xdyna.perception.types import PoseTrack
from xdyna.pipelines.animate import animate
from xdyna.pipelines.controls import perceive
from xdyna.pipelines.driving import open_driving
from xdyna.pipelines.examine import examined
from xdyna.pipelines.model import SCHEDULERS, Model, load
from xdyna.pipelines.plan import Request, plan_animation

from . import bridge
from .bridge import NONE, Drive, NodeProgress, outside_inference_mode

CATEGORY = "X-Dyna"
MODES = ("exact", "fast", "lowmem", "few_step")  # presets; those that choose frames and size are left to the widgets
MODES_OWN = "of the mode"
PUPPET_FACES = "xdyna.puppets.actor.PuppetFaces"


Input = tuple[Any, dict[str, Any]]


def _combo(choices: Sequence[str], tooltip: str, **more: Any) -> Input:
    return list(choices), {"tooltip": tooltip, **more}


def _whole(default: int, low: int, high: int, tooltip: str, **more: Any) -> Input:
    return "INT", {"default": default, "min": low, "max": high, "tooltip": tooltip, **more}


def _number(default: float, low: float, high: float, step: float, tooltip: str) -> Input:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def _flag(tooltip: str, *, default: bool = False) -> Input:
    return "BOOLEAN", {"default": default, "tooltip": tooltip}


def _socket(kind: str, tooltip: str) -> Input:
    return kind, {"tooltip": tooltip}


_RATE = {
    "fps": _number(
        0, 0, 240, 0.01, "Frames per second of the result; 0: the largest whole fraction of the file's rate up to 15."
    ),
    "frames": _whole(0, 0, 100_000, "At most so many frames; 0: all."),
}
_DETECTOR = {
    **_RATE,
    "detector": _combo(POSE_BACKENDS, "What finds keypoints."),
    "person": _whole(0, 0, 100, "Which person of a crowd; 0 is the largest."),
    "smooth": _flag("Filter the keypoints over time."),
}
_CROWD = {
    "crowd": _combo(
        CROWDS, "Where everybody is searched for. auto: where the person is lost, or others are near; all: every frame."
    )
}
_IMAGE = _socket("IMAGE", "One image of the person to animate.")
_NODE = {"node": "UNIQUE_ID"}


class LoadModel:
    """XDynaLoadModel: a pipeline folder with device, dtype, scheduler and LoRA."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        required = {
            "checkpoint": _combo(
                list(bridge.pipeline_folders()) or [NONE],
                "Pipeline folders in models/xdyna, and xdyna's own. xdyna-tiny knows rendered puppets only.",
            ),
            "mode": _combo(
                MODES,
                "exact: as the checkpoint is sampled. fast: a better solver, about a third of the time. lowmem: as "
                "exact, for small cards. few_step: two steps, by xdyna-tiny's own LoRA.",
            ),
            "dtype": _combo(DTYPES, "auto: float16 on CUDA, else float32."),
            "device": _combo(["auto", "cpu"], "auto: where ComfyUI computes."),
            "scheduler": _combo([MODES_OWN, *SCHEDULERS], "What takes the steps."),
            "lora": _combo([NONE, *bridge.lora_names()], "LoRA weights, beside those of the mode."),
            "lora_strength": _number(1, -10, 10, 0.05, "What the LoRA is multiplied by."),
            "width": _whole(0, 0, 4096, "Of the video, px; 0 with height 0: the checkpoint's own.", step=8),
            "height": _whole(0, 0, 4096, "Of the video, px; 0 with width 0: the checkpoint's own.", step=8),
        }
        return {"required": required}

    RETURN_TYPES = ("XDYNA_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("Loaded when it is first used.",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Choose the weights that animate."

    @classmethod
    def IS_CHANGED(cls, checkpoint: str, lora: str, **_: Any) -> str:
        """Changes with the weight files."""
        folder = bridge.pipeline_folders().get(checkpoint)
        files = list(folder.rglob("*")) if folder is not None else []
        files += [bridge.lora_path(lora)] if lora != NONE else []
        return bridge.fingerprint(path for path in files if path.is_file())

    @outside_inference_mode
    def load(
        self, checkpoint: str, mode: str, dtype: str, device: str, scheduler: str, lora: str, lora_strength: float,
        width: int, height: int,
    ) -> tuple[Model]:  # fmt: skip
        """Choose the weights; see `xdyna.load`.

        Raises:
            ValueError: weights that are not there or do not fit; the message says what to do.
        """
        folder = bridge.pipeline_folders().get(checkpoint)
        if folder is None:
            raise UsageError(
                f"checkpoint {checkpoint!r} is not there; put a pipeline folder into ComfyUI's models/xdyna (make one "
                "of the published weights with: xdyna convert)"
            )
        settings = compose(InferConfig, "infer", [f"preset={mode}"]).config
        loras = list(settings.lora)
        if lora != NONE:
            loras.append(f"{bridge.lora_path(lora)}:{lora_strength:g}")
        chosen = dataclasses.replace(
            settings,
            lora=loras,
            scheduler=settings.scheduler if scheduler == MODES_OWN else scheduler,
            dtype=dtype,
            device=bridge.device() if device == "auto" else device,
            width=width or None,
            height=height or None,
        )
        return (load(folder, chosen),)


class TrackVideo:
    """XDynaTrackVideo: a person in a video of ComfyUI's input folder."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        video = _combo(bridge.listed(*bridge.VIDEOS), "A video of a person who moves.", video_upload=True)
        return {"required": {"video": video, **_DETECTOR}, "optional": _CROWD, "hidden": _NODE}

    RETURN_TYPES = ("XDYNA_TRACK", "STRING")
    RETURN_NAMES = ("track", "report")
    FUNCTION = "track"
    CATEGORY = CATEGORY
    DESCRIPTION = "Find a person's keypoints in a video. Found ones are kept, so the same video is searched once."

    @classmethod
    def VALIDATE_INPUTS(cls, video: str) -> str | bool:
        """Whether the file is there."""
        return bridge.problem(video)

    @classmethod
    def IS_CHANGED(cls, video: str, **_: Any) -> str:
        """Changes with the file."""
        return file_sha256(bridge.input_file(video))

    @outside_inference_mode
    def track(
        self, video: str, fps: float, frames: int, detector: str, person: int, smooth: bool,
        crowd: str = "auto", node: str | None = None,
    ) -> tuple[Drive, str]:  # fmt: skip
        """Find the person; see `xdyna.track_person`.

        Raises:
            ValueError: nobody is found, or an unusable file; the message says what to do.
        """
        return _tracked(bridge.input_file(video), fps, frames, detector, person, smooth, crowd, node)


class TrackImages:
    """XDynaTrackImages: a person in a batch of images."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        required = {
            "images": _socket("IMAGE", "Frames of a video of a person who moves."),
            "images_fps": _number(15, 0.1, 240, 0.01, "Frames per second of the images."),
            **_DETECTOR,
        }
        return {"required": required, "optional": _CROWD, "hidden": _NODE}

    RETURN_TYPES = ("XDYNA_TRACK", "STRING")
    RETURN_NAMES = ("track", "report")
    FUNCTION = "track"
    CATEGORY = CATEGORY
    DESCRIPTION = "Find a person's keypoints in the frames of a video."

    @outside_inference_mode
    def track(
        self, images: torch.Tensor, images_fps: float, fps: float, frames: int, detector: str, person: int,
        smooth: bool, crowd: str = "auto", node: str | None = None,
    ) -> tuple[Drive, str]:  # fmt: skip
        """Find the person; see `xdyna.track_person`.

        Raises:
            ValueError: nobody is found; the message says what to do.
        """
        return _tracked(bridge.frames_file(images, images_fps), fps, frames, detector, person, smooth, crowd, node)


def _tracked(
    video: Path, fps: float, frames: int, detector: str, person: int, smooth: bool, crowd: str, node: str | None
) -> tuple[Drive, str]:
    driving = open_driving(video, kind="video", fps=fps or None, frames=frames or None)
    shown = NodeProgress(node)
    shown("finding the person", 0, len(driving.rows))
    track = track_person(
        video,
        frame_indices=driving.rows,
        backend=detector,
        person=person,
        crowd=crowd,
        progress=lambda done, total: shown("finding the person", done, total),
        smooth=OneEuro() if smooth else None,
        max_gap=InferConfig().max_gap,
    )
    return Drive.of(driving, track, video), f"{len(track)} frames, {float(driving.fps):g} per second: {track.summary}"


class LoadKeypoints:
    """XDynaLoadKeypoints: keypoints that xdyna wrote."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        videos = [NONE, *bridge.listed(*bridge.VIDEOS)]
        required = {
            "keypoints": _combo(bridge.listed(".npz"), "Keypoints (.npz) in ComfyUI's input folder."),
            "video": _combo(videos, "The video they were found in, to take the faces from; none: without expression."),
            **_RATE,
        }
        return {"required": required}

    RETURN_TYPES = ("XDYNA_TRACK", "STRING")
    RETURN_NAMES = ("track", "report")
    FUNCTION = "track"
    CATEGORY = CATEGORY
    DESCRIPTION = "Load keypoints that xdyna wrote, where no detector sees the person: puppets, drawings."

    @classmethod
    def VALIDATE_INPUTS(cls, keypoints: str, video: str) -> str | bool:
        """Whether the files are there."""
        names = [keypoints] if video == NONE else [keypoints, video]
        return next((wrong for name in names if (wrong := bridge.problem(name)) is not True), True)

    @classmethod
    def IS_CHANGED(cls, keypoints: str, video: str, **_: Any) -> str:
        """Changes with the files."""
        return " ".join(file_sha256(bridge.input_file(name)) for name in (keypoints, video) if name != NONE)

    def track(self, keypoints: str, video: str, fps: float, frames: int) -> tuple[Drive, str]:
        """Load them.

        Raises:
            ValueError: unusable files, or a video of other frames; the message says what to do.
        """
        faces = bridge.input_file(video) if video != NONE else None
        drive = _loaded(bridge.input_file(keypoints), faces, fps, frames)
        return drive, f"{len(drive.track)} frames, {drive.fps:g} per second"


def _loaded(keypoints: Path, video: Path | None, fps: float, frames: int) -> Drive:
    driving = open_driving(PoseTrack.load(keypoints), face_video=video, fps=fps or None, frames=frames or None)
    assert driving.track is not None, "keypoints have a track"
    return Drive.of(driving, driving.track.select(driving.rows), video)


class Sample:
    """XDynaSample: the sample puppet and its dance, which xdyna ships."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        return {"required": {"frames": _whole(16, 0, 10_000, "At most so many frames; 0: all.")}}

    RETURN_TYPES = ("IMAGE", "XDYNA_TRACK", "XDYNA_TRACK")
    RETURN_NAMES = ("image", "track", "person")
    OUTPUT_TOOLTIPS = (
        "A rendered puppet.",
        "The dance of another one.",
        "Keypoints of the puppet in the image, for Align.",
    )
    FUNCTION = "sample"
    CATEGORY = CATEGORY
    DESCRIPTION = "A puppet and a dance to try xdyna-tiny with."

    def sample(self, frames: int) -> tuple[torch.Tensor, Drive, Drive]:
        """Load the sample."""
        folder = resource("assets", "demo")
        image = bridge.to_image(read_image(folder / "reference.png")[None])
        person = PoseTrack.load(folder / "reference.npz")
        dance = _loaded(folder / "driving.npz", folder / "driving.mp4", 0, frames)
        return image, dance, Drive(person.select([0]), 1.0)


class Align:
    """XDynaAlign: fit the driving person to the one in the image, and look at it before anything slow."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        ways = ["auto", *(name for name in ALIGNMENTS if name != "auto")]
        required = {
            "model": _socket("XDYNA_MODEL", "Whose size the video has."),
            "image": _IMAGE,
            "track": _socket("XDYNA_TRACK", "Who moves."),
            "align": _combo(
                ways,
                "auto chooses; global: one scale and place; bones: limb by limb; face: by the head; none: the person "
                "stays where it is.",
            ),
            "crop": _combo(CROPS, "What of the image is kept: as the model was trained, around the person, or all."),
            "puppet_face": _flag("A rendered puppet makes the faces: for xdyna-tiny driven by a person."),
        }
        person = _socket("XDYNA_TRACK", "Keypoints of the person in the image, where no detector sees it.")
        return {"required": required, "optional": {"person": person}, "hidden": _NODE}

    RETURN_TYPES = ("XDYNA_TRACK", "IMAGE", "STRING")
    RETURN_NAMES = ("track", "preview", "report")
    OUTPUT_TOOLTIPS = ("", "Image, driving frames, and the fitted skeletons on the image.", "How well the two fit.")
    FUNCTION = "align"
    CATEGORY = CATEGORY
    DESCRIPTION = "Fit the driving person to the one in the image; says how well they suit each other."

    @outside_inference_mode
    def align(
        self, model: Model, image: torch.Tensor, track: Drive, align: str, crop: str, puppet_face: bool,
        person: Drive | None = None, node: str | None = None,
    ) -> tuple[Drive, torch.Tensor, str]:  # fmt: skip
        """Fit, judge and draw; see `xdyna.pipelines.examine.examined`.

        Raises:
            ValueError: alignment that cannot work; the message says what to do.
        """
        if puppet_face and align == "none":
            raise UsageError("puppet_face is asked for with align none; expected another align, so that the head fits")
        fitted = dataclasses.replace(
            track,
            align=align,
            crop=crop,
            face_source=PUPPET_FACES if puppet_face else None,
            person=bridge.person_file(person) if person is not None else None,
        )
        notes: list[str] = []
        watch = Watch(NodeProgress(node), tell=notes.append)
        with tempfile.TemporaryDirectory(prefix="align-", dir=bridge.temporary_folder()) as folder:
            preview = Path(folder) / "preview.png"
            request = Request(
                bridge.one_image(image), fitted.driving(), folder=Path(folder), face_video=fitted.video,
                ref_keypoints=fitted.person, force=True, preview=preview,
            )  # fmt: skip
            settings = dataclasses.replace(model.settings, **fitted.settings())
            plan = plan_animation(request, settings, model.checkpoint)
            _, suits = examined(plan, perceive(plan, watch=watch), watch=watch, overwrite=False)
            drawn = read_image(preview)
        report = "\n".join([*plan.notes, *notes, *suits.lines()])
        return fitted, bridge.to_image(drawn[None]), report


class Animate:
    """XDynaAnimate: image + track -> frames."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Of ComfyUI."""
        required = {
            "model": _socket("XDYNA_MODEL", "The weights."),
            "image": _IMAGE,
            "track": _socket("XDYNA_TRACK", "Who moves, as it was found, or from Align."),
            "seed": _whole(42, 0, 2**32 - 1, "The same seed gives the same video.", control_after_generate=True),
            "steps": _whole(0, 0, 1000, "Denoising steps; 0: those of the mode, or the checkpoint's own."),
            "guidance": _number(
                -1, -1, 100, 0.1, "1 and below: half the work; -1: that of the mode, or the checkpoint's own."
            ),
            "face": _flag("Take over the expression, where model and track can.", default=True),
            "force": _flag("Go on where image and track do not suit each other."),
        }
        return {"required": required, "hidden": _NODE}

    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "fps", "report")
    OUTPUT_TOOLTIPS = ("The frames of the video.", "Their rate, for Create Video.", "What was said on the way.")
    FUNCTION = "animate"
    CATEGORY = CATEGORY
    DESCRIPTION = "Animate the person in an image with a track."

    @outside_inference_mode
    def animate(
        self, model: Model, image: torch.Tensor, track: Drive, seed: int, steps: int, guidance: float, face: bool,
        force: bool, node: str | None = None,
    ) -> tuple[torch.Tensor, float, str]:  # fmt: skip
        """Animate; see `xdyna.animate`.

        Raises:
            ValueError: an input that cannot be used; the message says what to do.
            comfy.model_management.InterruptProcessingException: the user wants to stop.
        """
        settings = dataclasses.replace(
            model.settings,
            **track.settings(),
            seed=seed,
            steps=steps or model.settings.steps,
            guidance=model.settings.guidance if guidance < 0 else guidance,
            face=None if face else False,
            keep_audio=False,
            save="ffv1",
        )
        bridge.make_room(model.device)
        shown = NodeProgress(node)
        animation = animate(
            bridge.one_image(image),
            track.driving(),
            settings=settings,
            model=model,
            face_video=track.video,
            ref_keypoints=track.person,
            force=force,
            progress=shown,
            show=shown.show,
        )
        with tempfile.TemporaryDirectory(prefix="animate-", dir=bridge.temporary_folder()) as folder:
            animation.save(Path(folder) / "frames.mkv")
            frames = bridge.to_image(animation.frames.numpy())
        return frames, track.fps, "\n".join(animation.notes)


NODE_CLASS_MAPPINGS: dict[str, Callable[..., Any]] = {
    "XDynaLoadModel": LoadModel,
    "XDynaTrackVideo": TrackVideo,
    "XDynaTrackImages": TrackImages,
    "XDynaLoadKeypoints": LoadKeypoints,
    "XDynaSample": Sample,
    "XDynaAlign": Align,
    "XDynaAnimate": Animate,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "XDynaLoadModel": "X-Dyna Load Model",
    "XDynaTrackVideo": "X-Dyna Track Person (video)",
    "XDynaTrackImages": "X-Dyna Track Person (images)",
    "XDynaLoadKeypoints": "X-Dyna Load Keypoints",
    "XDynaSample": "X-Dyna Sample",
    "XDynaAlign": "X-Dyna Align",
    "XDynaAnimate": "X-Dyna Animate",
}
