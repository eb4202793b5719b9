"""Settings of an animation (`configs/infer.yaml`). The defaults are the published settings; they stand here alone."""

from dataclasses import dataclass, field

from xdyna.config.settings import check_settings, setting
from xdyna.core.errors import ConfigError

SIZE_MULTIPLE = 8  # pixels per latent of the VAE: other sizes have no latent grid
MAX_SIDE = 16_384  # px of a video: beyond it a typing mistake is likelier
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTION = (
    "auto",
    "native",
    "native_math",
    "native_flash",
    "native_efficient",
    "native_cudnn",
    "flash",
    "flash_3",
    "flex",
    "xformers",
    "sage",
)
COMPILE = ("none", "regional")
SCHEDULES = ("uniform", "uniform_open")
POSE_BACKENDS = ("mediapipe", "dwpose")
ALIGNMENTS = ("none", "auto", "global", "bones", "face")
DRIVE_KINDS = ("auto", "video", "pose", "keypoints")
SAVES = ("mp4", "ffv1", "frames")
DECODERS = ("vae", "tiny", "auto")
CROWDS = ("auto", "all", "off")
CROPS = ("published", "person", "none")


@dataclass
class InferConfig:
    """Settings of `scripts/infer.py`.

    Attributes:
        steps: denoising steps; None takes the checkpoint's own (published: 25).
        guidance: classifier-free guidance scale; at 1 and below the unconditional branch is left out; None takes the
            checkpoint's own (published: 7.5).
        guidance_interval: [low, high], shares of the noise schedule (0 is clean, 1 pure noise) between which guidance
            runs; elsewhere only the conditional branch does, which saves half of the UNet's work. [0, 1] is exact.
        reuse_interval: the deep levels of the UNet run every so many steps and are kept in between; 1 is exact.
        reuse_depth: with `reuse_interval`: skip connections, counted from the highest resolution, whose layers run in
            every step; less is faster and further from exact.
        token_downsampling: n; at the highest resolution, a frame looks at the means of n x n of its own places instead
            of at all of them (ToDo, arXiv 2402.13573). Reference and motion are untouched; 1 is exact.
        seed: of noise, window offsets and everything else random.
        height: of the video in px, a multiple of 8; None takes the checkpoint's own (published: 896).
        width: of the video in px, a multiple of 8; None takes the checkpoint's own (published: 512).
        fps: frames per second of the output; None follows the driving video. Not together with `stride`. Of a folder of
            frames it is their own rate, too (None: 15).
        frames: at most so many output frames; None for all of the driving video.
        stride: use every n-th driving frame; None follows `fps`.
        prompt: text; the published model was used with "".
        negative_prompt: text of the unconditional branch.
        context_frames: frames per window (published: 16).
        context_overlap: frames that neighbouring windows share, below `context_frames` (published: 4).
        context_schedule: "uniform" (published) ties the end to the beginning, "uniform_open" does not.
        face: use the face ControlNet; None: when the checkpoint has one and the driving shows faces.
        pose_backend: what finds keypoints: "mediapipe" or "dwpose".
        person: which person of a crowd; 0 is the largest.
        crowd: where everybody in the driving video is searched for, which takes several times as long as a look: "auto"
            in the first frame, where the person is lost, and while others are there; "all" frames; or "off".
        smooth: filter keypoints over time (one-euro filter).
        max_gap: fill gaps of missing keypoints up to so many frames.
        align: "global" scales and moves the driving person so that it fits the one in the reference image (not
            published), "bones" gives it that one's limbs, too, "face" goes by the frame whose head is turned most
            alike, "auto" chooses among them; "none" leaves it where it is.
        crop: what of the reference image is kept: "published" (the cut that the checkpoint was trained with), "person"
            (keeps the person who is found in it) or "none" (the size follows the image's aspect).
        face_source: what makes the faces that the face ControlNet sees, as a dotted name of a `FaceSource`; None: the
            driving video's own. "xdyna.puppets.actor.PuppetFaces" lets a rendered puppet make them, for models that
            know puppets only. With `align`.
        head: draw eyes and ears; None follows the checkpoint (published: no); anything else than it knows is refused.
        similarity_prior: begin from the noised reference (published) instead of pure noise.
        scheduler: what takes the steps: ddim, dpmsolver++, unipc, euler, lcm, ... or a scheduler class of diffusers;
            None takes the checkpoint's own (published: ddim).
        lora: files with LoRA weights, each "FILE" or "FILE:SCALE".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto" (float16 on CUDA, else float32), "float32", "float16" or "bfloat16".
        attention: kernel that computes attention, see `xdyna/models/kernels.py`: "native" is PyTorch's own choice,
            "auto" the fastest exact one for each kind of layer, as measured at the run's own shapes and remembered for
            the device; "sage" is not exact.
        compile: "regional" compiles the blocks that the networks repeat (torch.compile): the first step takes minutes,
            later ones less time; same result up to rounding. Not together with `low_memory`.
        vae_chunk: frames decoded at once.
        decoder: "vae"; "tiny" (the checkpoint's `tiny_vae`, for previews); "auto" takes that where there is one.
        low_memory: the branches of guidance one after the other, ControlNets, feed-forward layers and the VAE in parts,
            networks that wait on the CPU; same result up to rounding, slower.
        keep_audio: copy the driving video's sound into the output.
        url_max_mb: largest input that is fetched from an address, in 10^6 bytes.
        url_seconds: longest time that fetching one may take.
        save: the video as "mp4" (H.264, what players show), or without loss, to be measured: "ffv1" (.mkv) or "frames"
            (a folder of PNG images).

    Raises:
        ConfigError: a value out of range, or values that contradict each other.
    """

    steps: int | None = setting(None, low=1, high=1000)
    guidance: float | None = setting(None, low=0, high=100)
    guidance_interval: list[float] = setting([0.0, 1.0], low=0, high=1)  # noqa: RUF009 (a copy for each)
    reuse_interval: int = setting(1, low=1, high=1000)
    reuse_depth: int = setting(1, low=1, high=100)
    token_downsampling: int = setting(1, low=1, high=8)
    seed: int = setting(42, low=0, high=2**63 - 1)
    height: int | None = None
    width: int | None = None
    fps: float | None = setting(None, low=0.1, high=240)
    frames: int | None = setting(None, low=1)
    stride: int | None = setting(None, low=1)
    prompt: str = ""
    negative_prompt: str = ""
    context_frames: int = setting(16, low=1)
    context_overlap: int = 4
    context_schedule: str = setting("uniform", choices=SCHEDULES)
    face: bool | None = None
    pose_backend: str = setting("mediapipe", choices=POSE_BACKENDS)
    person: int = setting(0, low=0)
    crowd: str = setting("auto", choices=CROWDS)
    smooth: bool = False
    max_gap: int = setting(8, low=0)
    align: str = setting("none", choices=ALIGNMENTS, bare="auto")
    crop: str = setting("published", choices=CROPS)
    face_source: str | None = None
    head: bool | None = None
    similarity_prior: bool = True
    scheduler: str | None = None
    lora: list[str] = field(default_factory=list)
    device: str = "auto"
    dtype: str = setting("auto", choices=DTYPES)
    attention: str = setting("auto", choices=ATTENTION)
    compile: str = setting("none", choices=COMPILE)
    vae_chunk: int = setting(4, low=1)
    decoder: str = setting("vae", choices=DECODERS)
    low_memory: bool = False
    keep_audio: bool = True
    url_max_mb: float = setting(2000.0, above=0)
    url_seconds: float = setting(600.0, above=0)
    save: str = setting("mp4", choices=SAVES)

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 <= self.context_overlap < self.context_frames:
            raise ConfigError(
                f"context_overlap: got {self.context_overlap}, expected 0 to context_frames - 1 = "
                f"{self.context_frames - 1}"
            )
        if len(self.guidance_interval) != 2 or self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ConfigError(
                f"guidance_interval: got {list(self.guidance_interval)}, expected [low, high] with low below high"
            )
        if self.reuse_interval == 1 and self.reuse_depth != 1:
            raise ConfigError(
                f"reuse_depth={self.reuse_depth} and reuse_interval=1 contradict each other: nothing is reused; give a "
                "reuse_interval of 2 or more, or leave reuse_depth out"
            )
        if self.compile != "none" and self.low_memory:
            raise ConfigError(
                f"compile={self.compile} and low_memory=true contradict each other: weights that wait on the CPU are "
                "not compiled; give only one of them"
            )
        kind, _, number = self.device.partition(":")
        if kind not in DEVICES or (number and not number.isdecimal()) or (kind == "auto" and number):
            raise ConfigError(f"device: got {self.device!r}, expected one of {', '.join(DEVICES)}, or cuda:N")
        if (self.height is None) != (self.width is None):
            raise ConfigError(
                f"height and width: got {self.height} and {self.width}; give both, or neither for the checkpoint's size"
            )
        if self.height is not None and self.width is not None:
            validate_size(self.height, self.width)
        if self.fps is not None and self.stride is not None:
            raise ConfigError(f"fps={self.fps:g} and stride={self.stride} contradict each other; give only one of them")


def validate_size(height: int, width: int) -> None:
    """Check the size of a video.

    Args:
        height: in px.
        width: in px.

    Raises:
        ConfigError: not a positive multiple of 8; the message names the nearest valid sizes.
    """
    multiples = height % SIZE_MULTIPLE == width % SIZE_MULTIPLE == 0
    if multiples and min(height, width) >= SIZE_MULTIPLE and max(height, width) <= MAX_SIDE:
        return

    def around(side: int) -> tuple[int, int]:
        below = max(side // SIZE_MULTIPLE, 1) * SIZE_MULTIPLE
        return below, below if side <= below else below + SIZE_MULTIPLE

    if max(height, width) > MAX_SIDE:
        raise ConfigError(f"size {height}x{width} (height x width): both may be at most {MAX_SIDE}")
    (low_h, high_h), (low_w, high_w) = around(height), around(width)
    sizes = dict.fromkeys(f"{h}x{w}" for h, w in ((low_h, low_w), (high_h, high_w)))
    raise ConfigError(
        f"size {height}x{width} (height x width): both must be positive multiples of {SIZE_MULTIPLE}; "
        f"nearest valid: {' or '.join(sizes)}"
    )


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in px from "HxW", checked.

    Raises:
        ConfigError: another form, or not multiples of 8.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"size: got {text!r}, expected HEIGHTxWIDTH in pixels, for example 896x512")
    height, width = (int(part) for part in parts)
    validate_size(height, width)
    return height, width
