"""Settings of `scripts/bench.py` (`configs/bench.yaml`)."""

from dataclasses import dataclass, field

from xdyna.config.data import DataConfig
from xdyna.config.infer import DTYPES
from xdyna.config.settings import check_settings, setting


@dataclass
class BenchConfig:
    """What is measured, and how often. Training steps have the settings of the run, `TrainConfig`.

    Attributes:
        frames: generated frames (sampling), or frames of a video (metrics); None takes 16.
        height: px, of sampling.
        width: px, of sampling.
        pairs: timed pairs of sampling, or rounds of modes, after the warm-up.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", of sampling and modes.
        dtype: "auto", "float32", "float16" or "bfloat16", of modes.
        checkpoint: pipeline folder or its name, of modes.
        out: folder for the results of modes.
        workers: numbers of processes to try, of the loader.
        batch_size: clips of one process and step, of the loader.
        batches: timed batches of each worker, of the loader.
        steps_per_second: speed of the run that the loader is to feed.
        seed: of the clips.
        metrics: names; empty: all.
        video: what metrics are measured on; None: a rendered puppet, 128 x 128 px.
        repeats: timed repetitions, of metrics.
        data: what the loader reads; see `DataConfig`.

    Raises:
        ConfigError: a value out of range.
    """

    frames: int | None = setting(None, low=2)
    height: int = setting(448, low=8)
    width: int = setting(256, low=8)
    pairs: int = setting(5, low=1)
    device: str = "auto"
    dtype: str = setting("auto", choices=DTYPES)
    checkpoint: str = "xdyna-tiny"
    out: str = "outputs/bench_modes"
    workers: list[int] = setting([1], low=0)  # noqa: RUF009 (a copy for each)
    batch_size: int = setting(1, low=1)
    batches: int = setting(20, low=1)
    steps_per_second: float = setting(1.0, above=0)
    seed: int = setting(0, low=0)
    metrics: list[str] = field(default_factory=list)
    video: str | None = None
    repeats: int = setting(3, low=1)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_settings(self)
