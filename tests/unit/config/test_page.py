"""What the page animates live with where nothing is said."""

import pytest

from xdyna.config.page import PageConfig
from xdyna.core.errors import ConfigError


def test_few_steps_where_the_model_is_tiny() -> None:
    config = PageConfig()
    assert (config.live_steps, config.live_scheduler, config.live_lora) == (2, "lcm", ["xdyna-tiny-few-step:1.15"])
    assert (config.live_token_downsampling, PageConfig(live_token_downsampling=1).live_token_downsampling) == (2, 1)
    assert PageConfig(live_scheduler="ddim").live_scheduler == "ddim"


def test_other_models_and_no_lora_keep_their_own() -> None:
    other = PageConfig(live_checkpoint="mine")
    assert (other.live_scheduler, other.live_lora) == (None, [])
    plain = PageConfig(live_lora=[])
    assert (plain.live_scheduler, plain.live_lora) == (None, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("live_token_downsampling", 0), ("live_token_downsampling", 9), ("live_steps", 0), ("live_steps", 101)],
)
def test_bounds_of_live_animations(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{value}"):
        PageConfig(**{name: value})
