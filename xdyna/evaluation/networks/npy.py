"""Reads the one kind of .npy file that numpy opens with `allow_pickle` alone: a dictionary of arrays.

Such a file is a pickle, and an ordinary unpickler runs what the file says. This one knows seven names, none of which
does more than describe an array; a file that asks for any other is refused.

Source: numpy.lib.format (the header), PEP 307 and pickletools (the stream).
"""

from __future__ import annotations

import io
import pickle
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT = 64 * 2**20  # bytes; the files that are meant are of 3 MB at most
_NUMBERS = ("f2", "f4", "f8", "i4", "i8")


class _Kind:
    """Stands in for numpy.dtype: the letter code alone."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code.lstrip("<>=|") not in (*_NUMBERS, "O", "O8"):
            raise pickle.UnpicklingError(f"it holds an array of type {str(code)[:20]!r}")
        self.code = code.lstrip("<>=|")
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds an array of unknown byte order")
        self.order = state[1]


class _Array:
    """Stands in for numpy.ndarray: takes its description and makes the array of it by `numpy.frombuffer`."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if kind.code.startswith("O"):
            if shape != () or len(raw) != 1:
                raise pickle.UnpicklingError(f"it holds an array of objects of shape {shape}")
            self.value = raw[0]
        else:
            flat = np.frombuffer(raw, dtype=np.dtype(kind.order + kind.code))
            self.value = flat.reshape(shape, order="F" if fortran else "C").astype(np.float32)


def _new_array(kind: type, shape: tuple[int, ...], code: bytes) -> _Array:
    return _Array()


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for _codecs.encode, through which older pickles write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in the encoding {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands in for bytes, through which older pickles write empty ones."""
    return b""


class _ArraysOnly(pickle.Unpickler):
    """Knows arrays, and nothing that does anything."""

    KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
        ("_codecs", "encode"): _bytes,
        ("__builtin__", "bytes"): _no_bytes,
        ("collections", "OrderedDict"): dict,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name that the stream asks for."""
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights have no use for")
        return self.KNOWN[module, name]


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Read a dictionary of arrays that `numpy.save` has written.

    Args:
        path: a .npy file.

    Returns:
        float32 tensors by name.

    Raises:
        ValueError: missing, damaged, too large, something else, or a file that asks for code.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"it has more than {LIMIT // 2**20} MB")
        stream = io.BytesIO(path.read_bytes())
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it is of format {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = header(stream)
        if shape != () or kind != np.dtype("O"):
            raise ValueError(f"it holds one array of {kind} {shape}")
        tree = _ArraysOnly(stream).load()
        tree = tree.value if isinstance(tree, _Array) else tree
        if not isinstance(tree, dict) or not tree:
            raise ValueError(f"it holds a {type(tree).__name__}")
        return {_named(name): _numbers(name, item) for name, item in tree.items()}
    except _DAMAGE as error:
        raise ValueError(
            f"'{path}' is not a dictionary of arrays ({error or type(error).__name__}); expected a .npy file of "
            "network weights; get it again from its source"
        ) from error


def _named(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"it has an entry {str(name)[:40]!r}, expected names")
    return name


def _numbers(name: str, item: object) -> Tensor:
    if not isinstance(item, _Array) or not isinstance(item.value, np.ndarray):
        raise ValueError(f"its entry {str(name)[:40]!r} is no array of numbers")
    return torch.from_numpy(item.value.copy())


# What numpy's reader of headers and an unpickler raise on a stream that is damaged or made up.
_DAMAGE = (
    OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    ImportError, RecursionError, SyntaxError, tokenize.TokenError, pickle.UnpicklingError,
)  # fmt: skip
