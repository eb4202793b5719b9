"""What a model was trained with and is sampled with: `conditions.json` of a pipeline folder.

Training writes it; animation, evaluation and validation draw control images and sample by it. A folder without one is
taken as published: OpenPose bodies with hands, without head and face landmarks, guidance 7.5, 25 steps.
"""

import json
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from xdyna.core.atomic import write_file
from xdyna.core.errors import WeightsError, XDynaWarning
from xdyna.core.files import parse_json

FILE = "conditions.json"
FORMER_FILE = "sampling.json"  # of older folders: {"guidance": scale} alone
FACE_RULES = ("patches", "none")
REFERENCE_RULES = ("whole", "fitted")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
PUBLISHED_GUIDANCE, PUBLISHED_STEPS = 7.5, 25


@dataclass(frozen=True)
class PoseStyle:
    """How people are drawn in pose maps.

    Attributes:
        landmarks: the 68 face landmarks as white dots (the paper's w/lmk).
        hands: lines and dots of the hands.
        head: eyes and ears.
        width: factor of all widths and radii, above 0; 1 as published.
    """

    landmarks: bool = False
    hands: bool = True
    head: bool = False
    width: float = 1.0


@dataclass(frozen=True)
class ConditionContract:
    """Control images and sampling settings of a model.

    Attributes:
        pose: style of its pose maps.
        face: "patches" (a local and a global face patch for the face ControlNet) or "none".
        frames: T of the clips that its motion was trained on; None where nobody said so.
        fps: [lowest, highest] frames per second of these clips; None where nobody said so.
        size: (H, W) of these clips in px; None where nobody said so.
        guidance: classifier-free guidance scale where none is asked for, 0 to 100.
        steps: denoising steps where none are asked for, 1 to 1000.
        prediction_type: what the network predicts, as in the scheduler's configuration; None where nobody said so.
        reference: what image tokens are made of: "whole" (the reference as it was given, as published) or "fitted" (the
            part of it that is animated, at the size of the clips, as training here has it).
    """

    pose: PoseStyle = field(default_factory=PoseStyle)
    face: str = "patches"
    frames: int | None = None
    fps: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    guidance: float = PUBLISHED_GUIDANCE
    steps: int = PUBLISHED_STEPS
    prediction_type: str | None = None
    reference: str = "whole"

    def write(self, folder: Path) -> None:
        """Write it into a pipeline folder.

        Raises:
            FileError: it cannot be written.
        """
        write_file(folder / FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_contract(folder: Path) -> ConditionContract:
    """The contract of a pipeline folder; the published one where there is none.

    Args:
        folder: of the pipeline; "." for a pipeline that was never in one.

    Raises:
        WeightsError: the file is damaged, or holds what this release does not know.

    Warns:
        XDynaWarning: the pipeline came from the hub without the file, which diffusers does not fetch.
    """
    path = folder / FILE
    former = not path.is_file() and (folder / FORMER_FILE).is_file()
    if former:
        path = folder / FORMER_FILE
    elif not path.is_file():
        if folder.parent.name == "snapshots" or not (folder.is_absolute() or folder.is_dir()):
            warnings.warn(
                f"'{folder}' comes from the hub, from where diffusers fetches no {FILE}: the published contract is "
                f"assumed (guidance {PUBLISHED_GUIDANCE:g}, {PUBLISHED_STEPS} steps, poses without landmarks); if the "
                f"model has a {FILE}, fetch all its files (huggingface_hub.snapshot_download) and load that folder, or "
                "set pipeline.contract",
                XDynaWarning,
                stacklevel=2,
            )
        return ConditionContract()
    try:
        stored = parse_json(path.read_bytes())
        if former:
            return _checked({"guidance": stored["guidance"]})
        return _checked(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        example = '{"guidance": 2.0}' if former else '{"guidance": 2.0, "pose": {"landmarks": true}, ...}'
        raise WeightsError(f"{path} is damaged ({reason}); expected {example}, or no such file") from error


def _checked(stored: dict[str, Any]) -> ConditionContract:
    if not isinstance(stored, dict):
        raise ValueError(f"it holds {stored!r:.40}, no object")
    known = {entry.name for entry in fields(ConditionContract)}
    if unknown := sorted(set(stored) - known):
        raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    style = stored.get("pose", {})
    if not isinstance(style, dict):
        raise ValueError(f"pose is {style!r}, expected keys and values")
    style = dict(style)
    for name in ("landmarks", "hands", "head"):
        if not isinstance(style.get(name, True), bool):
            raise ValueError(f"pose.{name} is {style[name]!r}, expected true or false")
    if unknown := sorted(set(style) - {entry.name for entry in fields(PoseStyle)}):
        raise ValueError(f"unknown pose.{', pose.'.join(unknown)}")
    style["width"] = _number("pose.width", style.get("width", 1.0), low=0.01, high=100)
    optional = {name: value for name in ("frames", "fps", "size") if (value := stored.get(name)) is not None}
    choices = {"face": FACE_RULES, "reference": REFERENCE_RULES, "prediction_type": (None, *PREDICTION_TYPES)}
    chosen: dict[str, Any] = {name: stored.get(name, allowed[0]) for name, allowed in choices.items()}
    for name, value in chosen.items():
        if isinstance(value, list | dict) or value not in choices[name]:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, choices[name]))}")
    if "frames" in optional:
        optional["frames"] = _number("frames", optional["frames"], low=1, high=10_000, whole=True)
    for name, high, whole in (("fps", 1000, False), ("size", 16_384, True)):
        if name in optional:
            if not isinstance(optional[name], list) or len(optional[name]) != 2:
                raise ValueError(f"{name} is {optional[name]!r:.40}, expected two numbers")
            first, second = (_number(name, value, low=0.1, high=high, whole=whole) for value in optional[name])
            optional[name] = first, second
    if "fps" in optional and optional["fps"][0] > optional["fps"][1]:
        raise ValueError(f"fps is {list(optional['fps'])}, expected [lowest, highest]")
    guidance = _number("guidance", stored.get("guidance", PUBLISHED_GUIDANCE), low=0, high=100)
    steps = _number("steps", stored.get("steps", PUBLISHED_STEPS), low=1, high=1000, whole=True)
    return ConditionContract(pose=PoseStyle(**style), guidance=guidance, steps=steps, **chosen, **optional)


def _number(name: str, value: Any, *, low: float, high: float, whole: bool = False) -> Any:
    """A number in its range; a whole one where it counts something."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected {low:g} to {high:g}")
    if whole and value != int(value):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    return int(value) if whole else float(value)
