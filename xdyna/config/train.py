"""Settings of `scripts/train.py` (`configs/train.yaml`): one object, checked once, at the door."""

import math
from dataclasses import dataclass, field

from xdyna.config.data import DataConfig
from xdyna.config.model import ModelConfig
from xdyna.config.settings import check_settings, setting
from xdyna.core.errors import ConfigError

STAGES = ("vae", "base", "dynamics", "face", "distill")
APPEARANCES = ("dynamics_adapter", "reference_net", "ip_adapter")
FACES = ("sface", "landmarks", "none")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("fp32", "bf16", "fp16")
CHECKPOINTING = ("none", "selective", "full")
TIMESTEPS = ("independent", "spread")
TRACKERS = ("none", "wandb", "tensorboard")
ON_NAN = ("stop", "skip")


PUBLISHED_VAE = (128, 256, 512, 512)  # channels of Stable Diffusion's autoencoder: each step but one halves the image
MAX_AREA_RATIO = 4.0  # twice the height and width; beyond, positions and details are others than the model knows


def check_size(data: DataConfig, size: tuple[int, int], what: str) -> None:
    """See that clips are about as large as a model is made for.

    Args:
        data: the clips.
        size: (height, width) of the model's images, px.
        what: where the size stands.

    Raises:
        ConfigError: the areas differ by more than a factor of four.
    """
    ratio = data.height * data.width / (size[0] * size[1])
    if not 1 / MAX_AREA_RATIO <= ratio <= MAX_AREA_RATIO:
        raise ConfigError(
            f"the clips have {data.height} x {data.width} px, but the model is made for {size[0]} x {size[1]} px "
            f"({what}); set data.height and data.width (or data.buckets), or take another model"
        )


@dataclass
class OptimConfig:
    """The optimizer.

    Attributes:
        name: "adamw" (fused where the device has it), "adamw8bit" (bitsandbytes, CUDA) or "muon" (matrices by Muon, all
            else by AdamW, at the same learning rate; not with FSDP or DeepSpeed).
        lr: learning rate of every group without its own.
        group_lr: learning rates of single groups, e.g. {motion: 1e-4}.
        beta1: of Adam.
        beta2: of Adam.
        eps: of Adam.
        weight_decay: decoupled.
        schedule: after the warm-up "constant", or "cosine" down to `final_ratio` of the rate at `max_steps`.
        warmup: steps of linear warm-up.
        final_ratio: where the cosine ends, as a share of the rate.
        clip: largest norm of all gradients together; 0 for no clipping.
        max_norm_ratio: cap of that norm relative to what is usual in the run (the 90th percentile of the last 200
            steps): what is above so many times that is scaled down to it, if `clip` does not do more. null for no cap.
            Not with DeepSpeed, which clips by itself.
        ema: decay of the exponential moving average of the weights; 0 for none. What a stage hands on is the average.
    """

    name: str = setting("adamw", choices=OPTIMIZERS)
    lr: float = setting(1e-5, above=0)
    group_lr: dict[str, float] = field(default_factory=dict)
    beta1: float = setting(0.9, low=0, high=0.999999)
    beta2: float = setting(0.999, low=0, high=0.999999)
    eps: float = setting(1e-8, above=0)
    weight_decay: float = setting(0.01, low=0)
    schedule: str = setting("constant", choices=SCHEDULES)
    warmup: int = setting(500, low=0)
    final_ratio: float = setting(0.1, low=0, high=1)
    clip: float = setting(1.0, low=0)
    max_norm_ratio: float | None = setting(None, above=1)
    ema: float = setting(0.999, low=0, high=0.999999)

    def __post_init__(self) -> None:
        check_settings(self, section="optim")
        for group, rate in self.group_lr.items():
            if not 0 <= rate < math.inf:
                raise ConfigError(f"optim.group_lr.{group}: got {rate}, expected 0 or more")


@dataclass
class DistillConfig:
    """Stage distill (see xdyna/training/distill.py).

    Attributes:
        points: points of the student's schedule, those that diffusers' LCMScheduler visits in so many steps: the
            teacher goes from each to the next, and sampling in any divisor of them is trained. 50 is all of them
            (arXiv 2310.04378); as many as the finished model's `steps` is the shortest way where time is scarce.
        solver_steps: the teacher's DDIM steps from a point to the next.
        steps: denoising steps of the finished model where none are asked for.
        guidance: the teacher's guidance scale, which the student learns to do without; null takes that of `init`.
        huber: error below which the loss is squared, above which it is absolute, in latents; 0 for absolute alone.
        prior: share of the clips at the first timestep whose noise is added to copies of the reference, as sampling
            begins; to their own latents else.
        windows: share of the clips that are shown as short windows.
        window_frames: length of these.
        held: share of the short windows whose first frames are known already: given clean, as in live sampling.
        held_frames: how many of them.
    """

    points: int = setting(50, low=1, high=50)
    solver_steps: int = setting(1, low=1)
    steps: int = setting(4, low=1, high=50)
    guidance: float | None = setting(None, low=0, high=100)
    huber: float = setting(0.001, low=0)
    prior: float = setting(0.5, low=0, high=1)
    windows: float = setting(0.0, low=0, high=1)
    window_frames: int = setting(8, low=1)
    held: float = setting(0.5, low=0, high=1)
    held_frames: int = setting(2, low=0)

    def __post_init__(self) -> None:
        check_settings(self, section="loss.distill")
        if self.held_frames >= self.window_frames:
            raise ConfigError(
                f"loss.distill.held_frames={self.held_frames} leaves nothing of windows of {self.window_frames} frames "
                "to make; lower it"
            )


@dataclass
class LossConfig:
    """The loss.

    Attributes:
        min_snr: gamma of min-SNR weighting; null for plain noise-prediction error (X-Dyna).
        velocity: weigh noise predictions as errors of v (weight 1 / a_t), cut at this value; null for no such weight.
            Not together with `min_snr`.
        noise_offset: strength of offset noise; 0 for none.
        person: weight of the error around the driving skeleton, against 1 elsewhere; each clip's weights are scaled to
            a mean of 1. Not in validation.
        face: weight of the error at eyes and mouth (the local face patches), if larger. Not in validation.
        timesteps: "independent" draws each clip's timestep by itself; "spread" spreads those of neighbouring clips
            evenly, which takes noise out of the gradients of small batches. Uniform both.
        l1: weight of the L1 term of the autoencoder's loss, beside the squared error (stage vae).
        edges: weight of its gradient terms (stage vae).
        kl: weight of the autoencoder's KL term (stage vae).
        distill: of stage distill.
    """

    min_snr: float | None = setting(None, above=0)
    velocity: float | None = setting(None, low=1)
    noise_offset: float = setting(0.0, low=0)
    person: float = setting(1.0, above=0)
    face: float = setting(1.0, above=0)
    timesteps: str = setting("independent", choices=TIMESTEPS)
    l1: float = setting(0.1, low=0)
    edges: float = setting(0.1, low=0)
    kl: float = setting(1e-6, low=0)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        check_settings(self, section="loss")
        if self.min_snr is not None and self.velocity is not None:
            raise ConfigError("loss.min_snr and loss.velocity are two weightings of one loss; set one of them to null")


@dataclass
class ReplayConfig:
    """Clips of earlier steps that are shown again (see xdyna/training/replay.py).

    Attributes:
        clips: how many of the newest clips each process keeps on its device; 0 for no replay.
        fresh: new clips in each batch.
    """

    clips: int = setting(0, low=0)
    fresh: int = setting(1, low=1)

    def __post_init__(self) -> None:
        check_settings(self, section="replay")
        if self.clips and self.clips < self.fresh:
            raise ConfigError(
                f"replay.clips={self.clips} is less than replay.fresh={self.fresh}: clips would be gone before "
                "they are shown again; raise it, or set it to 0 for no replay"
            )


@dataclass
class ValidationConfig:
    """What is measured while training, always on the same held-out clips with the same noise.

    Attributes:
        every: steps between validations; 0 for none.
        clips: clips whose loss is measured, in each band of timesteps.
        bands: equal bands of timesteps (each is measured at its middle).
        videos: clips that are sampled, shown and measured (stages dynamics and face); 0 for none.
        steps: denoising steps of these.
        guidance: classifier-free guidance scale of these; None takes that of the finished model (`guidance`).
    """

    every: int = setting(1000, low=0)
    clips: int = setting(16, low=1)
    bands: int = setting(4, low=1)
    videos: int = setting(2, low=0)
    steps: int = setting(10, low=1)
    guidance: float | None = setting(None, low=0, high=100)

    def __post_init__(self) -> None:
        check_settings(self, section="validation")


@dataclass(frozen=True)
class Share:
    """What a process has of a batch.

    Attributes:
        micro_batch: clips of one forward and backward pass.
        accumulation: such passes in an optimizer step.
    """

    micro_batch: int
    accumulation: int


@dataclass
class TrainConfig:
    """Settings of `scripts/train.py`.

    Attributes:
        stage: "vae" and "base" (the tiny model has no SD1.5 to stand on: autoencoder, then 2-D UNet with image tokens),
            "dynamics" (the paper's stage 1), "face" (stage 2) or "distill" (a model of few steps from any other).
        appearance: where the person's looks come from: "dynamics_adapter" (X-Dyna), "reference_net" (`w/RefNet`),
            "ip_adapter" (`w/IP-A`: image tokens alone).
        face: "sface" (face ControlNet), "landmarks" (`w/lmk`: drawn into the pose map), "none" (`wo/face`).
        train: groups that train; null for those of the stage (see xdyna/training/stages.py).
        lora_rank: rank of the LoRA that stage distill trains on all layers of the UNet, unless `train` says otherwise.
        init: pipeline folder whose weights the stage starts from; null builds `model` with random weights.
        model: sizes of the networks, used when `init` is null and by `--dry-run`.
        data: the clips.
        optim: the optimizer.
        loss: the loss.
        replay: clips that are shown again, where making them is slower than training on them.
        validation: what is measured while training.
        out: folder of the run.
        max_steps: optimizer steps of the whole run.
        minutes: training time of the whole run, over all its parts, if it passes before `max_steps` are done: a falling
            learning rate then follows the time, and the run ends with it. null for no limit.
        batch: clips of an optimizer step, of all processes together: a run is the same on any number of processes that
            divides it.
        micro_batch: clips that a process takes at once, for its memory; gradients are added up over as many micro-steps
            as the batch needs. null: all that a process has of a batch.
        seed: of weights, data, noise.
        precision: "fp32", "bf16" or "fp16" (the last two: mixed with float32).
        checkpointing: gradient checkpointing: "none", "selective" (highest resolutions) or "full".
        channels_last: keep convolutions' weights with the channels innermost: faster on tensor cores, and on CPUs that
            compute in bfloat16; the numbers differ by rounding.
        cuda_graph: replay each step as CUDA graphs, for small networks whose kernels are shorter than their launch. For
            one GPU, without micro_batch, stages dynamics and face, and clips whose latents and image tokens are kept
            (replay or a cache). Without a GPU it has no effect.
        save_every: steps between checkpoints.
        keep: newest checkpoints to keep (the best is kept besides).
        log_every: steps between log lines; each has the means since the line before.
        tracker: "none", "wandb" (offline unless WANDB_MODE says otherwise) or "tensorboard"; metrics.csv is always
            written.
        guidance: classifier-free guidance scale of the finished model where none is asked for; None: that of `init`,
            and without one 7.5 (1 where no condition is ever dropped).
        on_nan: when a loss or a gradient is NaN or infinite: "stop", or "skip" the step (ten in a row stop the run).
        spike: a loss of more than so many times the running median is logged as a spike.
    """

    stage: str = setting("dynamics", choices=STAGES)
    appearance: str = setting("dynamics_adapter", choices=APPEARANCES)
    face: str = setting("sface", choices=FACES)
    train: list[str] | None = None
    lora_rank: int = setting(16, low=1)
    init: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    out: str = "runs/train"
    max_steps: int = setting(10000, low=1)
    minutes: float | None = setting(None, above=0)
    batch: int = setting(1, low=1)
    micro_batch: int | None = setting(None, low=1)
    seed: int = setting(42, low=0)
    precision: str = setting("fp32", choices=PRECISIONS)
    checkpointing: str = setting("none", choices=CHECKPOINTING)
    channels_last: bool = False
    cuda_graph: bool = False
    save_every: int = setting(500, low=1)
    keep: int = setting(2, low=1)
    log_every: int = setting(10, low=1)
    tracker: str = setting("none", choices=TRACKERS)
    guidance: float | None = setting(None, low=0, high=100)
    on_nan: str = setting("stop", choices=ON_NAN)
    spike: float = setting(5.0, above=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.stage == "face" and self.face != "sface":
            raise ConfigError(
                f"stage=face trains the face ControlNet, but face={self.face} has none; the ablation ends with "
                "stage=dynamics"
            )
        if sample_size := self.model.unet.get("sample_size"):
            scale = 2 ** (len(self.model.vae.get("block_out_channels", PUBLISHED_VAE)) - 1)
            check_size(self.data, (sample_size[0] * scale, sample_size[1] * scale), "model.unet.sample_size")
        if not self.out.strip():
            raise ConfigError("out: got an empty text, expected the folder of the run")
        # What the clips must carry follows from the stage: nobody has to keep the two in step by hand.
        face = "cross" if self.shows_faces else "landmarks" if self.face == "landmarks" else "none"
        if self.stage == "vae" and self.loss.face != 1:
            face = "self"
        if self.data.face not in ("none", face):
            raise ConfigError(
                f"data.face: got {self.data.face!r}, but stage={self.stage} with face={self.face} needs {face!r}; "
                "leave it out, it follows from them"
            )
        self.data.face = face
        self.share(1)
        if self.cuda_graph:
            self._check_graph()
        if self.replay.clips and self.data.buckets:
            raise ConfigError("replay needs clips of one size; leave data.buckets out, or set replay.clips=0")
        if self.loss.face != 1 and face == "none":
            raise ConfigError(
                f"loss.face={self.loss.face:g} weighs eyes and mouth of the face patches, which stage={self.stage} has "
                "not; set it to 1 (the stages face and vae have them)"
            )
        if self.stage == "vae" and self.data.source == "cache":
            raise ConfigError(
                "stage=vae trains on images, and data.source=cache holds the latents of another autoencoder; use "
                "data.source=puppet"
            )

    @property
    def shows_faces(self) -> bool:
        """Whether the face ControlNet runs."""
        return self.face == "sface" and self.stage in ("face", "distill")

    def share(self, processes: int) -> Share:
        """What each process has of a batch.

        Args:
            processes: that train together, >= 1.

        Raises:
            ConfigError: the batch cannot be shared evenly.
        """
        own, rest = divmod(self.batch, processes)
        if rest or own == 0:
            raise ConfigError(
                f"batch={self.batch} cannot be shared evenly among {processes} processes; start as many as divide it, "
                "or set another batch (in a run under way by --change batch=N)"
            )
        micro = self.micro_batch or own
        if own % micro:
            raise ConfigError(
                f"micro_batch={micro} does not divide the {own} clips that each of {processes} processes has of "
                f"batch={self.batch}; set it to a divisor, or to null for all of them"
            )
        if self.replay.clips and self.replay.fresh > micro:
            raise ConfigError(
                f"replay.fresh={self.replay.fresh} does not fit into the {micro} clips that each of {processes} "
                f"processes takes at once (batch={self.batch}, micro_batch={self.micro_batch}); lower it"
            )
        return Share(micro, own // micro)

    def _check_graph(self) -> None:
        trained = set(self.train or ())
        kept = bool(self.replay.clips) or self.data.source == "cache"
        wrong = {
            f"stage={self.stage} has none": self.stage not in ("dynamics", "face"),
            "image encoder and Resampler must be frozen": bool(trained & {"image_encoder", "resampler"}),
            "it needs replay.clips above 0, or data.source=cache": not kept,
            f"micro_batch={self.micro_batch} adds gradients up": self.share(1).accumulation != 1,
            "precision=fp16 scales its losses step by step; use bf16": self.precision == "fp16",
            "data.buckets has clips of several sizes": bool(self.data.buckets),
            "optim.max_norm_ratio is another limit in every step": self.optim.max_norm_ratio is not None,
        }
        if reasons := [reason for reason, applies in wrong.items() if applies]:
            raise ConfigError(f"cuda_graph=true cannot be: {'; '.join(reasons)}. Change that, or set it to false")
