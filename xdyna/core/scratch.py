"""Tensors whose numbers stand in files, so that long videos take no memory."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from math import prod
from typing import IO, Any

import torch

_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def mapped(file: IO[bytes], shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that is the beginning of a file: what is written to it goes there, its memory belongs to the system.

    Args:
        file: open for reading and writing; it may be closed afterwards. One that is too short grows.
        shape: of the tensor.
        dtype: of the tensor.

    Returns:
        Tensor: on the CPU; zeros where the file was too short.

    Raises:
        OSError: the disk is full. Later writes cannot fail for that.
    """
    size = prod(shape) * dtype.itemsize
    if (given := os.fstat(file.fileno()).st_size) < size:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), given, size - given)
        else:
            os.ftruncate(file.fileno(), size)
    pages = mmap.mmap(file.fileno(), size)
    _MAPPED.add(pages)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))


def drop_pages() -> None:
    """Let go of the memory that mapped tensors take in this process; their numbers stay. Cheap enough for a loop."""
    advice: Any = getattr(mmap, "MADV_DONTNEED", None)
    if advice is not None:
        for pages in list(_MAPPED):
            pages.madvise(advice)
