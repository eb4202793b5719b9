"""xdyna.config.infer: devices and sizes."""

import pytest

from xdyna.config.infer import InferConfig, parse_size, validate_size
from xdyna.core.errors import ConfigError


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "auto"])
def test_devices(device: str) -> None:
    assert InferConfig(device=device).device == device


def valid_neighbours(side: int) -> set[int]:
    """By brute force: the nearest positive multiples of 8 below and above."""
    valid = range(8, side + 17, 8) if side > 0 else range(8, 9)
    below, above = [v for v in valid if v <= side], [v for v in valid if v >= side]
    return {max(below)} | {min(above)} if below else {8}


@pytest.mark.parametrize("height", [*range(-8, 40), 895, 896, 897])
def test_nearest_sizes_against_brute_force(height: int) -> None:
    if height > 0 and height % 8 == 0:
        validate_size(height, 64)
        return
    with pytest.raises(ConfigError, match="nearest valid") as caught:
        validate_size(height, 64)
    named = str(caught.value).split("nearest valid: ")[1].split(" or ")
    assert {int(size.split("x")[0]) for size in named} == valid_neighbours(height)
    assert {size.split("x")[1] for size in named} == {"64"}
    for size in named:
        parse_size(size)


def test_parse_size() -> None:
    assert parse_size("896x512") == (896, 512)
    assert parse_size(" 64 X 32 ") == (64, 32)
    for text in ("896", "896x", "axb", "896x512x3", "-8x8", "1.5x8"):
        with pytest.raises(ConfigError, match="expected HEIGHTxWIDTH"):
            parse_size(text)
    with pytest.raises(ConfigError, match="nearest valid"):
        parse_size("900x512")
