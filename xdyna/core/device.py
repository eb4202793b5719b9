"""Devices and data types by their names in settings; copies to a device."""

import os
import platform

import torch
from torch import Tensor

from xdyna.core.errors import UsageError


def pick_device(name: str) -> torch.device:
    """Device by name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UsageError: when the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # An unknown name or number; a PyTorch built without CUDA; a kind that this PyTorch has no kernels for.
        raise UsageError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}); use cpu, cuda, cuda:N, mps or auto"
        ) from error
    return device


def device_of_rank(name: str, local_rank: int) -> torch.device:
    """`pick_device` for one of several processes of a machine: "cuda" and "auto" take the process's own GPU.

    Args:
        name: of the device; "cuda:N" is taken at its word by all processes.
        local_rank: number of the process on this machine; with more processes than GPUs they share.

    Raises:
        UsageError: when the device does not exist here.
    """
    if name in ("auto", "cuda") and (count := torch.cuda.device_count()):
        name = f"cuda:{local_rank % count}"
    return pick_device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Data type by name; "auto" takes float16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: for float16 on the CPU.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UsageError("--dtype float16 does not run on the CPU; use float32 or bfloat16")
    return getattr(torch, name)


def chip_name(device: torch.device) -> str:
    """What a measurement holds for: the name of the GPU, or what is known of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.processor()} {os.cpu_count()} cores"


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
