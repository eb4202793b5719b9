"""Devices by their names."""

import pytest
import torch

from xdyna.core import device
from xdyna.core.device import device_of_rank


@pytest.mark.parametrize(
    ("name", "rank", "gpus", "expected"),
    [
        ("cuda", 0, 2, "cuda:0"),
        ("cuda", 1, 2, "cuda:1"),
        ("auto", 3, 2, "cuda:1"),
        ("cuda:1", 0, 2, "cuda:1"),
        ("cpu", 1, 2, "cpu"),
        ("auto", 1, 0, "auto"),
    ],
)
def test_each_process_has_its_own_gpu(
    name: str, rank: int, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(device, "pick_device", lambda name: name)
    assert device_of_rank(name, rank) == expected
