"""What an animation will do, known before perception and sampling; `--dry-run` prints it."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xdyna.config.contract import PoseStyle
from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.core.files import is_address, path_sha256
from xdyna.diffusion.windows import window_schedule
from xdyna.media.image import CropResize, read_image
from xdyna.perception.base import get_backend
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines import crop as crops
from xdyna.pipelines.attention import Run
from xdyna.pipelines.driving import Driving, open_driving
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.outputs import OutputFiles, free_names

_MUCH = 0.75  # share of the reference below which it is said how much the crop keeps
ImageLike = str | Path | Image.Image | np.ndarray
DrivingLike = str | Path | PoseTrack


@dataclass(frozen=True)
class Request:
    """One animation that is asked for.

    Attributes:
        reference: image of the person: a file, a PIL image or uint8 (H, W, 3).
        driving: driving video, pose video or keypoints (.npz); or a track.
        out: video to write; None for an automatic name in `folder`.
        folder: for `out` = None.
        kind: what the driving file is, see `DRIVE_KINDS`.
        face_video: for pose videos and keypoints: where the faces come from. This and the others may be addresses
            (text with "://") for `fetched`.
        ref_keypoints: keypoints of the person in the reference, for alignment, the crop and its check; None looks for
            the person where it is needed.
        prompt: text; None takes that of the settings.
        force: go on where image and driving do not suit each other.
        preview: a PNG file to write before anything slow: reference, fitted skeletons, crop.
        addresses: where fetched files came from, by the name of their field (`xdyna.pipelines.fetching`).
    """

    reference: ImageLike
    driving: DrivingLike
    out: Path | None = None
    folder: Path = Path("outputs")
    kind: str = "auto"
    face_video: str | Path | None = None
    ref_keypoints: str | Path | None = None
    prompt: str | None = None
    force: bool = False
    preview: Path | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)

    def named(self) -> dict[str, Path]:
        """Files that the run reads, by what they are."""
        entries = {
            "reference": self.reference,
            "driving": self.driving,
            "face_video": self.face_video,
            "ref_keypoints": self.ref_keypoints,
        }
        return {name: Path(entry) for name, entry in entries.items() if isinstance(entry, str | Path)}

    def inputs(self) -> list[Path]:
        """Files that the run reads."""
        return list(self.named().values())

    def names(self) -> dict[str, Path]:
        """What automatic output names are made of."""
        named = self.named()
        return {
            "reference": named.get("reference", Path("image")),
            "driving": named.get("driving", Path("keypoints")),
            "folder": self.folder,
        }

    def digests(self) -> dict[str, dict[str, str]]:
        """Path or address, and SHA-256 of everything that goes in; of values without a file, the hash alone."""
        entries: dict[str, dict[str, str]] = {}
        for name, path in self.named().items():
            origin = {"url": self.addresses[name]} if name in self.addresses else {"path": str(path)}
            entries[name] = {**origin, "sha256": path_sha256(path)}
        if "reference" not in entries:
            entries["reference"] = {"sha256": hashlib.sha256(read_reference(self.reference).tobytes()).hexdigest()}
        if isinstance(self.driving, PoseTrack):
            parts = (self.driving.body, self.driving.hands, self.driving.face, self.driving.times)
            entries["driving"] = {"sha256": hashlib.sha256(b"".join(p.tobytes() for p in parts)).hexdigest()}
        return entries


@dataclass(frozen=True)
class Plan:
    """One animation, checked and ready to be made.

    Attributes:
        request: what is asked for.
        settings: all settings; the guidance is a number.
        checkpoint: the weights.
        reference: uint8 (H, W, 3), as it was read.
        size: (H, W) of the video in px.
        crop: what of the reference is kept.
        driving: the driving file and the frames used.
        files: names of the outputs.
        face: whether face control is used.
        person: the person in the reference where it is known; None where nobody looked or nobody was found.
        searched: whether somebody looked.
        notes: what the caller should know before it begins, a sentence each.
    """

    request: Request
    settings: InferConfig
    checkpoint: Checkpoint
    reference: np.ndarray
    size: tuple[int, int]
    crop: CropResize
    driving: Driving
    files: OutputFiles
    face: bool
    person: Person | None = None
    searched: bool = False
    notes: tuple[str, ...] = ()

    def fitted(self) -> np.ndarray:
        """The reference as it is animated, uint8 of `size`."""
        return crops.fit_image(self.reference, self.crop, face=self.face)

    def without_face(self) -> "Plan":
        """The same without face control, whose published crop is another."""
        crop, _ = choose_crop(
            self.settings.crop, self.reference, self.size, face=False, person=self.person, look=lambda: None
        )
        return dataclasses.replace(self, face=False, crop=crop)

    def run_shapes(self) -> Run:
        """What decides the shapes of a denoising step."""
        settings = self.settings
        return Run(
            size=self.size,
            frames=min(len(self.driving.rows), settings.context_frames),
            branches=2 if (settings.guidance or 0) > 1 else 1,
            text_rows=1 if settings.prompt == settings.negative_prompt else 2,
        )

    def windows(self) -> list[list[int]]:
        """Frame numbers of the windows of a step whose offset is 0."""
        schedule = window_schedule(self.settings.context_schedule)
        return schedule(
            len(self.driving.rows),
            context=self.settings.context_frames,
            overlap=self.settings.context_overlap,
            offset=0,
        )


def read_reference(reference: ImageLike) -> np.ndarray:
    """The reference image, uint8 (H, W, 3).

    Raises:
        UsageError: no such file, or an array of another form.
        ValueError: a file that is no image.
    """
    if isinstance(reference, str | Path):
        if is_address(reference):
            raise UsageError(f"--ref {reference}: addresses are for `xdyna animate` alone; download it, give the file")
        if not Path(reference).exists():
            raise UsageError(f"--ref {reference}: no such file; expected a picture of a person (jpg, png, webp, ...)")
        return read_image(reference)
    array = np.asarray(reference.convert("RGB") if isinstance(reference, Image.Image) else reference)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UsageError(f"the reference is an array {array.dtype} {array.shape}; expected uint8 (H, W, 3)")
    return array


def complete_settings(settings: InferConfig, request: Request, checkpoint: Checkpoint) -> InferConfig:
    """The settings with what the checkpoint and the request decide.

    Args:
        settings: as they are given.
        request: the animation.
        checkpoint: the weights, with their contract.

    Raises:
        UsageError: pose maps of another style than the model was trained with.
    """
    contract = checkpoint.contract
    if settings.head is not None and settings.head != contract.pose.head:
        knows = "with" if contract.pose.head else "without"
        raise UsageError(
            f"head={str(settings.head).lower()}, but {checkpoint.folder} was trained {knows} eyes and ears in its pose "
            "maps; leave head out"
        )
    return dataclasses.replace(
        settings,
        head=contract.pose.head,
        guidance=contract.guidance if settings.guidance is None else settings.guidance,
        steps=contract.steps if settings.steps is None else settings.steps,
        prompt=settings.prompt if request.prompt is None else request.prompt,
    )


def plan_animation(
    request: Request, settings: InferConfig, checkpoint: Checkpoint, *, files: OutputFiles | None = None,
    overwrite: bool = False,
) -> Plan:  # fmt: skip
    """Everything that can be known before perception and sampling; checks the inputs.

    Args:
        request: the animation.
        settings: all settings; guidance, steps and head of None take the checkpoint's own.
        checkpoint: the weights.
        files: names that were reserved for it; None takes those that are free now.
        overwrite: whether existing outputs may be replaced.

    Raises:
        UsageError: a missing file or options that contradict each other.
        ValueError: an unreadable reference or driving file, an output that is in the way.
    """
    settings = complete_settings(settings, request, checkpoint)
    reference = read_reference(request.reference)
    driving = open_driving(
        request.driving,
        kind=request.kind,
        face_video=None if request.face_video is None else Path(request.face_video),
        fps=settings.fps,
        stride=settings.stride,
        frames=settings.frames,
    )
    context = min(len(driving.rows), settings.context_frames)
    if context > checkpoint.max_context:
        raise UsageError(
            f"context_frames is {context}, but the motion modules of {checkpoint.folder} know "
            f"{checkpoint.max_context} frames; use at most that"
        )
    person = _known_person(request, settings, reference)
    if settings.decoder == "tiny" and not checkpoint.has_tiny_decoder:
        raise UsageError(
            f"decoder=tiny, but {checkpoint.folder} has no tiny_vae; add one (an AutoencoderTiny, such as TAESD), or "
            "choose decoder=vae or auto"
        )
    files = files or free_names(request.out, **request.names(), save=settings.save)
    files.check_free(overwrite=overwrite, inputs=request.inputs())
    _check_preview(request, overwrite=overwrite)
    face = _use_face(driving, settings, checkpoint)
    size = _size(settings, reference, checkpoint)
    look = _Look(reference, settings.pose_backend)
    crop, person = choose_crop(settings.crop, reference, size, face=face, person=person, look=look)
    folder = driving.note()
    notes = [
        *([folder] if folder else []),
        *look.notes,
        *_crop_notes(crop, settings.crop, reference, person),
        *_contract_notes(settings, driving, checkpoint),
    ]
    return Plan(
        request, settings, checkpoint, reference, size, crop, driving, files, face, person,
        searched=bool(look.called), notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _check_preview(request: Request, *, overwrite: bool) -> None:
    """See whether the preview may be written, before hours of work rather than after."""
    path = request.preview
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise UsageError(f"--preview {path}: expected a name that ends in .png")
    if any(path.exists() and path.samefile(source) for source in request.inputs()):
        raise UsageError(f"--preview {path} is an input of this run and would be overwritten; choose another name")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already; choose another --preview, or give --overwrite to replace it")


def _contract_notes(settings: InferConfig, driving: Driving, checkpoint: Checkpoint) -> Iterator[str]:
    """Where an animation leaves what the model was trained on."""
    contract, fps = checkpoint.contract, float(driving.fps)
    if settings.guidance is not None and settings.guidance <= 1 and list(settings.guidance_interval) != [0, 1]:
        yield f"guidance_interval changes nothing: guidance is {settings.guidance:g}, so it never runs"
    if settings.decoder == "auto" and not checkpoint.has_tiny_decoder:
        yield "decoder=auto: this checkpoint has no tiny_vae; its vae decodes"
    window = min(len(driving.rows), settings.context_frames)
    if contract.frames is not None and window > contract.frames:
        yield f"windows of {window} frames; the model was trained on {contract.frames}"
    if contract.fps is not None and not 0.99 * contract.fps[0] <= fps <= 1.01 * contract.fps[1]:
        low, high = contract.fps
        yield f"{fps:.4g} frames per second; the model was trained on {low:g} to {high:g} (--fps)"
    if contract.pose != PoseStyle() and driving.kind == "pose":
        yield "the pose video is taken as it is; the model was trained on pose maps of another style than the published"


def choose_crop(
    policy: str, reference: np.ndarray, size: tuple[int, int], *, face: bool, person: Person | None, look: Any
) -> tuple[CropResize, Person | None]:
    """What of the reference is kept. It is looked at for a person where something has to go.

    Args:
        policy: "published", "person" or "none".
        reference: uint8 (H, W, 3).
        size: (H, W) of the video.
        face: whether face control runs.
        person: in the reference, where it is known.
        look: finds it where it is not; called at most once, without arguments; gives a `Person` or None.

    Returns:
        The crop, and the person where one is known now.
    """
    crop = crops.published_crop(reference.shape, size, face=face)
    if policy == "none" or crops.is_whole(crop, reference.shape):
        return crop, person
    person = person or look()
    if policy == "person" and person is not None:
        crop = crops.person_crop(reference.shape, size, crops.person_box(person, reference.shape))
    return crop, person


def _known_person(request: Request, settings: InferConfig, reference: np.ndarray) -> Person | None:
    """The person in the reference, where keypoints were given."""
    if request.ref_keypoints is None:
        return None
    if settings.align == "none" and settings.crop == "none":
        raise UsageError(
            "--ref-keypoints show the person to align to, or to keep in the crop; with crop=none and no --align there "
            "is neither: give --align or another crop, or leave them out"
        )
    return read_person(Path(request.ref_keypoints), reference.shape[:2])


class _Look:
    """Looks for a person in the reference, and notes what came of it."""

    def __init__(self, reference: np.ndarray, backend: str) -> None:
        self.reference, self.backend, self.notes, self.called = reference, backend, list[str](), False

    def __call__(self) -> Person | None:
        self.called = True
        try:
            people = get_backend(self.backend).detect(self.reference)
        except (PerceptionError, OSError) as error:  # the package or its models are missing, or cannot be unpacked
            self.notes.append(f"the reference was not searched for a person, so its crop was not checked: {error}")
            return None
        if not people:
            self.notes.append("nobody was found in the reference; it is cropped as published")
            return None
        return people[0]


def _crop_notes(crop: CropResize, policy: str, reference: np.ndarray, person: Person | None) -> Iterator[str]:
    advice = "crop=none keeps the whole image"
    if policy != "person":
        advice = f"crop=person keeps as much as fits, {advice}"
    kept = crop.box[2] * crop.box[3] / (reference.shape[0] * reference.shape[1])
    if kept < _MUCH:
        yield f"note: the crop keeps {kept:.0%} of the reference; {advice}"
    if person is None:
        return
    if cut := crops.what_is_cut(crop, crops.person_box(person, reference.shape)):
        yield (f"warning: the crop cuts the person in the reference ({cut}); {advice}")


def _size(settings: InferConfig, reference: np.ndarray, checkpoint: Checkpoint) -> tuple[int, int]:
    if settings.crop == "none":
        if settings.height is not None:
            raise UsageError("crop=none takes the size from the reference; leave the size out, or choose another crop")
        return crops.size_of_aspect(reference.shape, checkpoint.size)
    return settings.height or checkpoint.size[0], settings.width or checkpoint.size[1]


def _use_face(driving: Driving, settings: InferConfig, checkpoint: Checkpoint) -> bool:
    wanted = settings.face
    if settings.align != "none" and driving.kind == "pose":
        raise UsageError("--align needs keypoints; it cannot move the skeletons of a pose video")
    if settings.face_source is not None and (settings.align == "none" or driving.face_video is None):
        raise UsageError(
            f"face_source={settings.face_source} makes the faces of a person in a video for the figure in the picture; "
            "give --align too, and drive with a video of a person"
        )
    if wanted and not checkpoint.has_face:
        raise UsageError(f"--face: {checkpoint.folder} has no face ControlNet; leave out --face")
    if wanted and driving.face_video is None:
        raise UsageError(
            f"--face: {driving.path} holds no faces (it is a {driving.kind} file); drive with a video of a person, "
            "or name the video it was made from with --face-video"
        )
    possible = checkpoint.has_face and driving.face_video is not None
    return possible if wanted is None else wanted


def read_person(path: Path, size: tuple[int, ...]) -> Person:
    """The person in a reference image, from a file instead of a detector.

    Args:
        path: keypoints (.npz); the first frame counts.
        size: (H, W) of the image, px.

    Returns:
        Person: with the box around its body.

    Raises:
        UsageError: the file is missing, belongs to another size, or its first frame shows nobody.
    """
    if not path.exists():
        raise UsageError(f"--ref-keypoints {path}: no such file; expected keypoints of the picture (.npz)")
    track = PoseTrack.load(path)
    seen = track.body[0, track.body[0, :, 2] > 0, :2]
    if track.size != tuple(size) or not len(seen):
        who = "somebody" if len(seen) else "nobody"
        raise UsageError(
            f"--ref-keypoints {path} shows {who} in an image of {track.size[0]}x{track.size[1]} (HxW); expected a "
            f"person in one of {size[0]}x{size[1]}, the size of --ref"
        )
    box = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
    return Person(body=track.body[0], hands=track.hands[0], face=track.face[0], box=box, score=1.0)
