"""Which frames of a video a network of clips sees. The choice is data: a protocol, applied to every video alike."""

import numpy as np

from xdyna.config.eval import ClipProtocol


def is_short(protocol: ClipProtocol, length: int) -> bool:
    """Whether a video of so many frames does not fill one clip."""
    return length < (protocol.frames if protocol.choice == "uniform" else protocol.span)


def clip_indices(protocol: ClipProtocol, length: int) -> list[np.ndarray]:
    """Frame numbers of the clips of a video.

    Args:
        length: its frames, at least 1.

    Returns:
        int arrays of `frames` numbers below `length`; one clip, or several for "windows".

    Raises:
        ValueError: no frames, or too few with short="error".
    """
    if length < 1:
        raise ValueError("a video without frames has no clips")
    if is_short(protocol, length):
        if protocol.short == "error":
            raise ValueError(f"the video has {length} frames, the protocol needs {protocol.span}; allow short='loop'")
        steps = np.arange(protocol.frames) * (1 if protocol.choice == "uniform" else protocol.stride)
        return [steps % length if protocol.short == "loop" else steps.clip(max=length - 1)]
    if protocol.choice == "uniform":
        return [np.linspace(0, length - 1, protocol.frames).round().astype(np.int64)]
    steps, free = np.arange(protocol.frames) * protocol.stride, length - protocol.span
    starts = {
        "first": [0],
        "centre": [free // 2],
        "seeded": [int(np.random.default_rng([protocol.seed, length]).integers(free + 1))],
        "windows": list(range(0, free + 1, protocol.span)),
    }[protocol.choice]
    return [start + steps for start in starts]
