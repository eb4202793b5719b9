"""Copies between the host and a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to a GPU from page-locked memory, so that nobody waits for the copy.

    Args:
        tensor: of any type; the host may change or forget it afterwards.
        device: where it is to be.

    Returns:
        Tensor: itself if it is there already.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
