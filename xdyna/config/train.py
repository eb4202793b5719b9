"""The typed configuration of `scripts/train.py` (`configs/train/*.yaml`): one object, checked once, at the door."""

from dataclasses import dataclass, field

from xdyna.config.data import DataConfig
from xdyna.config.loader import ModelConfig
from xdyna.core.errors import ConfigError

STAGES = ("vae", "base", "dynamics", "face")
APPEARANCES = ("dynamics_adapter", "reference_net", "ip_adapter")
FACES = ("sface", "landmarks", "none")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("fp32", "bf16", "fp16")
CHECKPOINTING = ("none", "selective", "full")
TIMESTEPS = ("independent", "spread")
TRACKERS = ("none", "wandb", "tensorboard")


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
        ema: decay of the exponential moving average of the weights; 0 for none. What a stage hands on is the average.
    """

    name: str = "adamw"
    lr: float = 1e-5
    group_lr: dict[str, float] = field(default_factory=dict)
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: str = "constant"
    warmup: int = 500
    final_ratio: float = 0.1
    clip: float = 1.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        _choice("optim.name", self.name, OPTIMIZERS)
        _choice("optim.schedule", self.schedule, SCHEDULES)
        for name in ("lr", "eps"):
            _at_least(f"optim.{name}", getattr(self, name), 0.0, above=True)
        for name in ("weight_decay", "warmup", "clip"):
            _at_least(f"optim.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2", "ema"):
            _between(f"optim.{name}", getattr(self, name), 0.0, 0.999999)
        _between("optim.final_ratio", self.final_ratio, 0.0, 1.0)
        for group, rate in self.group_lr.items():
            _at_least(f"optim.group_lr.{group}", rate, 0.0)


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
    """

    min_snr: float | None = None
    velocity: float | None = None
    noise_offset: float = 0.0
    person: float = 1.0
    face: float = 1.0
    timesteps: str = "independent"
    l1: float = 0.1
    edges: float = 0.1
    kl: float = 1e-6

    def __post_init__(self) -> None:
        if self.min_snr is not None:
            _at_least("loss.min_snr", self.min_snr, 0.0, above=True)
        if self.velocity is not None:
            _at_least("loss.velocity", self.velocity, 1.0)
            if self.min_snr is not None:
                raise ConfigError(
                    "loss.min_snr and loss.velocity are two weightings of one loss; set one of them to null"
                )
        for name in ("person", "face"):
            _at_least(f"loss.{name}", getattr(self, name), 0.0, above=True)
        _choice("loss.timesteps", self.timesteps, TIMESTEPS)
        for name in ("noise_offset", "l1", "edges", "kl"):
            _at_least(f"loss.{name}", getattr(self, name), 0.0)


@dataclass
class ReplayConfig:
    """Clips of earlier steps that are shown again (see xdyna/training/replay.py).

    Attributes:
        clips: how many of the newest clips each process keeps on its device; 0 for no replay.
        fresh: new clips in each batch.
    """

    clips: int = 0
    fresh: int = 1

    def __post_init__(self) -> None:
        _at_least("replay.clips", self.clips, 0)
        _at_least("replay.fresh", self.fresh, 1)
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
        guidance: classifier-free guidance scale of these.
    """

    every: int = 1000
    clips: int = 16
    bands: int = 4
    videos: int = 2
    steps: int = 10
    guidance: float = 2.0

    def __post_init__(self) -> None:
        for name in ("every", "videos"):
            _at_least(f"validation.{name}", getattr(self, name), 0)
        for name in ("clips", "bands", "steps"):
            _at_least(f"validation.{name}", getattr(self, name), 1)


@dataclass
class TrainConfig:
    """Settings of `scripts/train.py`.

    Attributes:
        stage: "vae" and "base" (the tiny model has no SD1.5 to stand on: autoencoder, then 2-D UNet with image tokens),
            "dynamics" (the paper's stage 1) or "face" (stage 2).
        appearance: where the person's looks come from: "dynamics_adapter" (X-Dyna), "reference_net" (`w/RefNet`),
            "ip_adapter" (`w/IP-A`: image tokens alone).
        face: "sface" (face ControlNet), "landmarks" (`w/lmk`: drawn into the pose picture), "none" (`wo/face`).
        train: groups that train; null for those of the stage (see xdyna/training/stages.py).
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
        batch_size: clips per process and micro-step.
        accumulation: micro-steps per optimizer step.
        seed: of weights, data, noise.
        precision: "fp32", "bf16" or "fp16" (the last two: mixed with float32).
        checkpointing: gradient checkpointing: "none", "selective" (highest resolutions) or "full".
        channels_last: keep convolutions' weights with the channels innermost: faster on tensor cores, and on CPUs that
            compute in bfloat16; the numbers differ by rounding.
        cuda_graph: replay each step as CUDA graphs, for small networks whose kernels are shorter than their launch. For
            one GPU, accumulation=1, stages dynamics and face, and clips whose latents and image tokens are kept (replay
            or a cache). Without a GPU it has no effect.
        save_every: steps between checkpoints.
        keep: newest checkpoints to keep (the best is kept besides).
        log_every: steps between log lines.
        tracker: "none", "wandb" (offline unless WANDB_MODE says otherwise) or "tensorboard"; metrics.csv is always
            written.
        on_nan: when a loss is NaN or infinite: "stop", or "skip" the step.
        spike: a loss of more than so many times the running median is logged as a spike.
    """

    stage: str = "dynamics"
    appearance: str = "dynamics_adapter"
    face: str = "sface"
    train: list[str] | None = None
    init: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    out: str = "runs/train"
    max_steps: int = 10000
    minutes: float | None = None
    batch_size: int = 1
    accumulation: int = 1
    seed: int = 42
    precision: str = "fp32"
    checkpointing: str = "none"
    channels_last: bool = False
    cuda_graph: bool = False
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    tracker: str = "none"
    on_nan: str = "stop"
    spike: float = 5.0

    def __post_init__(self) -> None:
        choices = {
            "stage": STAGES,
            "appearance": APPEARANCES,
            "face": FACES,
            "precision": PRECISIONS,
            "checkpointing": CHECKPOINTING,
            "tracker": TRACKERS,
            "on_nan": ("stop", "skip"),
        }
        for name, valid in choices.items():
            _choice(name, getattr(self, name), valid)
        for name in ("max_steps", "batch_size", "accumulation", "save_every", "keep", "log_every"):
            _at_least(name, getattr(self, name), 1)
        if self.minutes is not None:
            _at_least("minutes", self.minutes, 0.0, above=True)
        _at_least("seed", self.seed, 0)
        _at_least("spike", self.spike, 1.0, above=True)
        if self.stage == "face" and self.face != "sface":
            raise ConfigError(
                f"stage=face trains the face ControlNet, but face={self.face} has none; the ablation ends with "
                "stage=dynamics"
            )
        if not self.out.strip():
            raise ConfigError("out: got an empty text, expected the folder of the run")
        # What the clips must carry follows from the stage: nobody has to keep the two in step by hand.
        face = {"face": "cross"}.get(self.stage, "landmarks" if self.face == "landmarks" else "none")
        if self.stage == "vae" and self.loss.face != 1:
            face = "self"
        if self.data.face not in ("none", face):
            raise ConfigError(
                f"data.face: got {self.data.face!r}, but stage={self.stage} with face={self.face} needs {face!r}; "
                "leave it out, it follows from them"
            )
        self.data.face = face
        if self.replay.clips and self.replay.fresh > self.batch_size:
            raise ConfigError(
                f"replay.fresh={self.replay.fresh} does not fit into batch_size={self.batch_size}; lower it"
            )
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
                "stage=vae trains on pictures, and data.source=cache holds the latents of another autoencoder; use "
                "data.source=puppet"
            )

    def _check_graph(self) -> None:
        trained = set(self.train or ())
        kept = bool(self.replay.clips) or self.data.source == "cache"
        wrong = {
            f"stage={self.stage} has none": self.stage not in ("dynamics", "face"),
            "image encoder and Resampler must be frozen": bool(trained & {"image_encoder", "resampler"}),
            "it needs replay.clips above 0, or data.source=cache": not kept,
            f"accumulation={self.accumulation} must be 1": self.accumulation != 1,
            "precision=fp16 scales its losses step by step; use bf16": self.precision == "fp16",
            "data.buckets has clips of several sizes": bool(self.data.buckets),
        }
        if reasons := [reason for reason, applies in wrong.items() if applies]:
            raise ConfigError(f"cuda_graph=true cannot be: {'; '.join(reasons)}. Change that, or set it to false")


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def _at_least(name: str, value: float, low: float, *, above: bool = False) -> None:
    if not (value > low if above else value >= low) or value == float("inf"):
        raise ConfigError(
            f"{name}: got {value}, expected {'more than ' if above else ''}{low:g}{'' if above else ' or more'}"
        )


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: got {value}, expected {low:g} to {high:g}")
