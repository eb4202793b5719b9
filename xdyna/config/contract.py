"""What a model was trained with and is sampled with: `conditions.json` of a pipeline folder.

Training writes it; animation, evaluation and validation draw control images and sample by it. A folder without one is
taken as published: OpenPose bodies with hands, without head and face landmarks, guidance 7.5, 25 steps.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from xdyna.core.atomic import write_file
from xdyna.core.errors import WeightsError

FILE = "conditions.json"
FORMER_FILE = "sampling.json"  # of older folders: {"guidance": scale} alone
FACE_RULES = ("patches", "none")
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
    """

    pose: PoseStyle = field(default_factory=PoseStyle)
    face: str = "patches"
    frames: int | None = None
    fps: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    guidance: float = PUBLISHED_GUIDANCE
    steps: int = PUBLISHED_STEPS
    prediction_type: str | None = None

    def write(self, folder: Path) -> None:
        """Write it into a pipeline folder.

        Raises:
            FileError: it cannot be written.
        """
        write_file(folder / FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_contract(folder: Path) -> ConditionContract:
    """The contract of a pipeline folder; the published one where there is none.

    Raises:
        WeightsError: the file is damaged, or holds what this release does not know.
    """
    path = folder / FILE
    former = not path.is_file() and (folder / FORMER_FILE).is_file()
    if former:
        path = folder / FORMER_FILE
    elif not path.is_file():
        return ConditionContract()
    try:
        stored = json.loads(path.read_text())
        if former:
            return _checked({"guidance": stored["guidance"]})
        return _checked(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        example = '{"guidance": 2.0}' if former else '{"guidance": 2.0, "pose": {"landmarks": true}, ...}'
        raise WeightsError(f"{path} is damaged ({reason}); expected {example}, or no such file") from error


def _checked(stored: dict[str, Any]) -> ConditionContract:
    known = {entry.name for entry in fields(ConditionContract)}
    if unknown := sorted(set(stored) - known):
        raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    style = dict(stored.get("pose", {}))
    for name in ("landmarks", "hands", "head"):
        if not isinstance(style.get(name, True), bool):
            raise ValueError(f"pose.{name} is {style[name]!r}, expected true or false")
    pose = PoseStyle(**style)
    if not 0 < pose.width < 100:
        raise ValueError(f"pose.width is {pose.width}, expected a factor above 0")
    found = ConditionContract(
        pose=pose,
        face=stored.get("face", "patches"),
        frames=_maybe(int, stored.get("frames")),
        fps=_pair(float, stored.get("fps")),
        size=_pair(int, stored.get("size")),
        guidance=float(stored.get("guidance", PUBLISHED_GUIDANCE)),
        steps=int(stored.get("steps", PUBLISHED_STEPS)),
        prediction_type=stored.get("prediction_type"),
    )
    if not 0 <= found.guidance <= 100:
        raise ValueError(f"guidance is {found.guidance}, expected 0 to 100")
    if not 1 <= found.steps <= 1000:
        raise ValueError(f"steps is {found.steps}, expected 1 to 1000")
    if found.face not in FACE_RULES:
        raise ValueError(f"face is {found.face!r}, expected one of {', '.join(FACE_RULES)}")
    if found.prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"prediction_type is {found.prediction_type!r}, expected {', '.join(PREDICTION_TYPES)}")
    return found


def _maybe(kind: type, value: Any) -> Any:
    return None if value is None else kind(value)


def _pair(kind: type, value: Any) -> Any:
    if value is None:
        return None
    low, high = value
    return kind(low), kind(high)
