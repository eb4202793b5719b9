"""Settings of `scripts/convert.py` (`configs/convert.yaml`)."""

from dataclasses import dataclass, field

from xdyna.config.model import ModelConfig
from xdyna.config.settings import check_settings, setting

WRITTEN_DTYPES = ("float16", "float32", "bfloat16")


@dataclass
class ConvertConfig:
    """What is written.

    Attributes:
        dtype: of the written weights.
        seed: of untrained weights (`--tiny`).
        model: sizes of the networks.

    Raises:
        ConfigError: a value out of range.
    """

    dtype: str = setting("float16", choices=WRITTEN_DTYPES)
    seed: int = setting(0, low=0)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        check_settings(self)
