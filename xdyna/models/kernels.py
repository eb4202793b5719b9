"""Attention kernels by the names that settings have: what each needs, and which compute attention exactly.

All of them are reached through diffusers' dispatcher. Exact ones compute softmax(Q K^T / sqrt(D)) V in the dtype that
they are given, up to the order of their sums; `sage` rounds queries and keys to 8 bits.

Head widths of the published model are 40, 80 and 160. Kernels that work on tiles of fixed widths (flash, sage, and what
`native` takes on a GPU) compute 40 as 64; they pad by themselves, so nothing is padded here. Layers of a width that a
kernel refuses stay with `native`; which these are is tried out, and told.
"""

import importlib.util
from dataclasses import dataclass

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName as Backend

from xdyna.core.errors import UsageError
from xdyna.core.install import install_xdyna


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention.

    Attributes:
        backend: its name in diffusers' dispatcher.
        exact: False where values are rounded on the way.
        package: what must be installed beside PyTorch, as it is imported; None for nothing.
        install: how; "" where an extra of xdyna of the same name brings it.
        cuda: runs on CUDA GPUs alone.
        half: of the 16-bit dtypes alone, on a GPU.
        candidate: whether `attention=auto` tries it where it can run.
    """

    backend: Backend
    exact: bool = True
    package: str | None = None
    install: str = ""
    cuda: bool = False
    half: bool = False
    candidate: bool = True


KERNELS: dict[str, Kernel] = {
    "native": Kernel(Backend.NATIVE),  # PyTorch picks one of the four below
    "native_math": Kernel(Backend._NATIVE_MATH),
    "native_flash": Kernel(Backend._NATIVE_FLASH, half=True),
    "native_efficient": Kernel(Backend._NATIVE_EFFICIENT, cuda=True),
    "native_cudnn": Kernel(Backend._NATIVE_CUDNN, cuda=True, half=True),
    "flash": Kernel(Backend.FLASH, package="flash_attn", install="pip install flash-attn", cuda=True, half=True),
    "flash_3": Kernel(
        Backend._FLASH_3, package="flash_attn_interface", install="built from its sources", cuda=True, half=True
    ),
    # Without torch.compile it makes the whole matrix of scores: no candidate.
    "flex": Kernel(Backend.FLEX, candidate=False),
    "xformers": Kernel(Backend.XFORMERS, package="xformers", cuda=True),
    "sage": Kernel(
        Backend.SAGE,
        exact=False,
        package="sageattention",
        install="pip install sageattention",
        cuda=True,
        half=True,
        candidate=False,
    ),
}
"""By the names of the setting `attention` (`xdyna.config.infer.ATTENTION`)."""


def obstacle(name: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> str | None:
    """Why a kernel cannot run.

    Args:
        name: of `KERNELS`.
        device: where it would; None looks at packages alone.
        dtype: of queries, keys and values.

    Returns:
        Half a sentence; None where nothing is known against it.
    """
    kernel = KERNELS[name]
    if kernel.package is not None and importlib.util.find_spec(kernel.package) is None:
        how = kernel.install or install_xdyna(kernel.package)
        return f"the package {kernel.package.replace('_', '-')} is not installed ({how})"
    if kernel.package is not None or kernel.backend == Backend.FLEX:
        try:
            attention_dispatch._check_attention_backend_requirements(kernel.backend)
        except RuntimeError as error:
            return f"diffusers does not take the installed one ({error})"
    if device is None or dtype is None:
        return None
    if kernel.cuda and device.type != "cuda":
        return f"it runs on CUDA GPUs alone, and the device is {device}"
    if kernel.half and device.type == "cuda" and dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the dtype is {str(dtype).removeprefix('torch.')}"
    return None


def require_kernel(name: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Check that a kernel that was asked for by name can run; arguments as in `obstacle`.

    Raises:
        UsageError: it cannot; the message says why, and what can.
    """
    reason = obstacle(name, device, dtype)
    if reason is not None:
        others = [other for other in KERNELS if obstacle(other, device, dtype) is None]
        raise UsageError(f"attention={name} was asked for, but {reason}; use auto, or one of {', '.join(others)}")


def is_exact(names: list[str]) -> bool:
    """Whether all kernels of these names are exact; "auto" takes no other ones."""
    return all(name not in KERNELS or KERNELS[name].exact for name in names)
