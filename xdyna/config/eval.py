"""Settings of an evaluation (`configs/eval.yaml`): the protocol that is measured by."""

from dataclasses import dataclass, field

from xdyna.config.infer import POSE_BACKENDS
from xdyna.config.settings import check_settings, setting

CLIP_CHOICES = ("first", "centre", "uniform", "seeded", "windows")
SHORT = ("loop", "repeat_last", "error")
TABLES = ("table1", "table2", "table4", "table5")
MASKS = ("mediapipe", "given")
EVAL_DTYPES = ("float32", "float16", "bfloat16")
MTCNN_SOFTMAX = ("classes", "width")


@dataclass
class ClipProtocol:
    """Frames of a clip.

    Attributes:
        frames: N, frames of a clip.
        choice: "first" N frames; the "centre" N; N spread over the whole video ("uniform": first and last included); a
            "seeded" start, the same for a video of this length in every run; or all "windows": consecutive clips
            without overlap, what remains at the end is left out.
        stride: step between frames ("uniform" has its own).
        short: videos that are too short "loop" from their start, "repeat_last" frame, or are an "error".
        seed: of "seeded".

    Raises:
        ConfigError: a value out of range.
    """

    frames: int = setting(16, low=1)
    choice: str = setting("first", choices=CLIP_CHOICES)
    stride: int = setting(1, low=1)
    short: str = setting("loop", choices=SHORT)
    seed: int = setting(0, low=0)

    def __post_init__(self) -> None:
        check_settings(self, section="clip")

    @property
    def span(self) -> int:
        """Frames of the video that a clip reaches over."""
        return (self.frames - 1) * self.stride + 1


@dataclass
class EvalConfig:
    """Settings of `scripts/eval.py`: a protocol (`configs/metrics/*.yaml`).

    Attributes:
        metrics: names.
        table: table of the paper whose rows are shown beside; None for none.
        clip: frames that networks of clips see (see `ClipProtocol`).
        masks: figure masks: "mediapipe", or "given" (by --masks-dir or the list of pairs; the others are an error
            then).
        pose_backend: finds people: "mediapipe" or "dwpose".
        mtcnn_softmax: what the softmax of AdaFace's face detector runs over: the two "classes", as in the original
            MTCNN, or the "width" of the map, as AdaFace's published code has it by mistake.
        batch: images, or clips, that networks see at once; None: a number of their own. Changes rounding alone.
        dtype: what metrics' networks compute in: "float32", or by choice "float16" or "bfloat16", which is faster on
            GPUs and another number in the third digit; face detection stays in float32.
        max_frames: only the first so many frames of each video; None for all.

    Raises:
        ConfigError: a value out of range.
    """

    metrics: list[str] = field(default_factory=list)
    table: str | None = setting(None, choices=TABLES)
    clip: ClipProtocol = field(default_factory=ClipProtocol)
    masks: str = setting("mediapipe", choices=MASKS)
    pose_backend: str = setting("mediapipe", choices=POSE_BACKENDS)
    mtcnn_softmax: str = setting("classes", choices=MTCNN_SOFTMAX)
    batch: int | None = setting(None, low=1)
    dtype: str = setting("float32", choices=EVAL_DTYPES)
    max_frames: int | None = setting(None, low=1)

    def __post_init__(self) -> None:
        check_settings(self)
