from collections.abc import Callable

import pytest

from xdyna.config.data import DataConfig


@pytest.fixture(scope="session")
def small() -> Callable[..., DataConfig]:
    """Options of clips that render quickly."""

    def make(**changes: object) -> DataConfig:
        options: dict = {"height": 64, "width": 64, "frames": 3, "video_frames": 8, "stride": [1, 2]}
        return DataConfig(**{**options, **changes})

    return make
