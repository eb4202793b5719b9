"""Settings of `xdyna live` (`configs/live.yaml`)."""

from dataclasses import dataclass, field, fields

from xdyna.config.infer import ATTENTION, CROPS, DTYPES, POSE_BACKENDS, InferConfig
from xdyna.config.settings import check_settings, setting
from xdyna.core.errors import ConfigError

HELD_AS = ("noised", "clean")
LIVE_ALIGNMENTS = ("none", "global")  # what can be measured once and then holds for every frame
LIVE_SAVES = ("mp4", "ffv1", "frames", "raw")


@dataclass
class LiveConfig:
    """Settings of a live animation. What has the name of a setting of `InferConfig` means the same.

    Attributes:
        steps: denoising steps of a window.
        guidance: classifier-free guidance scale; None takes the checkpoint's own. Above 1 a window takes twice as long.
        token_downsampling: see `InferConfig`; 2 makes windows faster.
        seed: of the noise, which is a function of the seed and the number of the frame.
        height: of the video in px; None takes the checkpoint's own.
        width: of the video in px; None takes the checkpoint's own.
        fps: frames per second that are taken and written; None takes the largest whole fraction of a file's rate up to
            15, and 8 of cameras and streams of keypoints.
        new: new frames per window.
        held: last frames of a window that are the first ones of the next, held as they are; 0 for none.
        held_as: how the network sees them at timestep t: "noised" to its level like the new ones, or "clean".
        latency: aim in s for the time from a frame's arrival to its picture; what cannot be in time is dropped.
        drop: drop frames rather than fall behind; False lets the input wait (files, tests): all frames, no bound.
        seconds: end after so much input; None: with the input.
        loop: begin again at the end of a driving file.
        wait: end after so many s without input, or with a reader that does not read.
        every: s between reports; 0 for none but the last.
        prompt: text; the published model was used with "".
        negative_prompt: text of the unconditional branch.
        face: use the face ControlNet; None: when the checkpoint has one and there are faces, or a `face_source`.
        pose_backend: what finds keypoints: "mediapipe" or "dwpose".
        person: which person of a crowd; 0 is the largest.
        max_gap: frames for which the last pose is held when the person is lost; later pose maps are empty.
        align: "global" scales and moves the driving person to fit the one in the reference image, as measured on the
            first frames that show it; "none" leaves it where it is.
        align_frames: frames with the person that alignment is measured on, at least.
        crop: what of the reference image is kept: "published", "person" or "none".
        face_source: what makes the faces that the face ControlNet sees (dotted name); None: the driving video's own.
        similarity_prior: begin from the noised reference (published) instead of pure noise.
        scheduler: what takes the steps; None takes the checkpoint's own.
        lora: files with LoRA weights, each "FILE" or "FILE:SCALE".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto" (float16 on CUDA; bfloat16 on CPUs with instructions for it, else float32), "float32", "float16"
            or "bfloat16".
        threads: of the processor that denoise, where that is the device; None: measured at the start.
        attention: kernel that computes attention; "auto": the fastest exact one as measured before the first frame, on
            a CPU PyTorch's own.
        save: the output as "mp4", without loss as "ffv1" or "frames" (a folder), or "raw" (RGB bytes, `--out -`).

    Raises:
        ConfigError: a value out of range, or values that contradict each other.
    """

    steps: int = setting(2, low=1, high=1000)
    guidance: float | None = setting(None, low=0, high=100)
    token_downsampling: int = setting(1, low=1, high=8)
    seed: int = setting(42, low=0, high=2**63 - 1)
    height: int | None = None
    width: int | None = None
    fps: float | None = setting(None, low=0.1, high=240)
    new: int = setting(6, low=1)
    held: int = setting(2, low=0)
    held_as: str = setting("noised", choices=HELD_AS)
    latency: float = setting(2.0, above=0)
    drop: bool = True
    seconds: float | None = setting(None, above=0)
    loop: bool = False
    wait: float = setting(60.0, above=0)
    every: float = setting(5.0, low=0)
    prompt: str = ""
    negative_prompt: str = ""
    face: bool | None = None
    pose_backend: str = setting("mediapipe", choices=POSE_BACKENDS)
    person: int = setting(0, low=0)
    max_gap: int = setting(8, low=0)
    align: str = setting("none", choices=LIVE_ALIGNMENTS, bare="global")
    align_frames: int = setting(4, low=1)
    crop: str = setting("published", choices=CROPS)
    face_source: str | None = None
    similarity_prior: bool = True
    scheduler: str | None = None
    lora: list[str] = field(default_factory=list)
    device: str = "auto"
    dtype: str = setting("auto", choices=DTYPES)
    threads: int | None = setting(None, low=1, high=1024)
    attention: str = setting("auto", choices=ATTENTION)
    save: str = setting("mp4", choices=LIVE_SAVES)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.held > self.new:
            raise ConfigError(f"held: got {self.held}, expected 0 to new = {self.new}")
        if self.face_source is not None and self.align == "none":
            raise ConfigError(
                f"face_source={self.face_source} fits faces to the figure in the image; give align=global"
            )
        self.animation()

    @property
    def window(self) -> int:
        """Frames of a window, the held ones included."""
        return self.new + self.held

    def animation(self) -> InferConfig:
        """The same for what animates whole files, as far as it goes.

        Raises:
            ConfigError: values that contradict each other there, too.
        """
        shared = {entry.name for entry in fields(InferConfig)} & {entry.name for entry in fields(self)} - {"save"}
        values = {name: getattr(self, name) for name in shared}
        return InferConfig(**values, context_frames=self.window, context_overlap=self.held)
