"""Loading of published weights: every name and every shape, or a message."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from xdyna.evaluation.frames import FrameSequence

CLIPS = 4  # that networks of clips see at once: about 1 GB of ViT-g or I3D in float32


def load_published(module: nn.Module, state: Mapping[str, Tensor], *, what: str) -> None:
    """Load weights strictly and freeze the network.

    Args:
        module: the network, set to evaluation.
        state: its published tensors.
        what: how messages call the file that was expected.

    Raises:
        ValueError: missing, unexpected or misshapen tensors, or NaN or infinity in one.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", extra), ("of another shape", sorted(shapes)))
        if names
    ]
    if problems:
        raise ValueError(f"the weights are not those of {what} ({len(own)} tensors): {'; '.join(problems)}")
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ValueError(
            f"the weights of {what} hold NaN or infinity in {len(bad)} tensors ({bad[0]}); fetch them again"
        )
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()})
    module.eval().requires_grad_(False)


def clips_to_device(frames: FrameSequence | np.ndarray, device: torch.device) -> Tensor:
    """One clip or several, uint8 (T, H, W, 3) or (N, T, H, W, 3) -> (N, T, 3, H, W) on a device."""
    x = torch.from_numpy(np.ascontiguousarray(frames[:])).to(device)
    return rearrange(x[None] if x.ndim == 4 else x, "n t h w c -> n t c h w")


def on_device(device: torch.device | str | None) -> torch.device:
    """The device to run on; None: the CPU."""
    return torch.device("cpu" if device is None else device)
