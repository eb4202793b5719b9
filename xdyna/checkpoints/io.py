"""Safe and strict reading and writing of weights.

Reading never runs code from a file: safetensors, or torch pickles through `torch.load(weights_only=True)`. What a file
is goes by its first bytes, not by its name, so that a web page named `.ckpt` is told as what it is.
Loading into a module is strict: every name and shape must fit, and what may be missing is listed by the caller.
"""

import contextlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xdyna.checkpoints.diagnose import misfit_reason
from xdyna.checkpoints.files import SAFETENSORS, TORCH_LEGACY, TORCH_ZIP, check_folder, file_kind, safetensors_problem
from xdyna.core.atomic import flush, temporary_name
from xdyna.core.errors import WeightsError

__all__ = [
    "WeightsError",
    "check_finite",
    "check_folder",
    "load_state_dict",
    "load_strict",
    "save_safetensors",
]

SHOWN = 10  # names listed in a message
CHUNK = 8 * 2**20  # bytes
# What torch.load raises for bytes that are no checkpoint; RecursionError is a RuntimeError.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
               MemoryError, OverflowError, OSError, SyntaxError, zipfile.BadZipFile)  # fmt: skip


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint; no code in it is run.

    A torch file may be flat or hold the tensors under "state_dict"; "module." before a name (left by data-parallel
    training) is taken off; tensors nested one level deep get the name "outer.inner".

    Args:
        path: a safetensors or torch file.

    Returns:
        dict[str, Tensor]: on the CPU, in the file's data types. The tensors may be backed by the file (memory map), so
        it must not change while they are in use.

    Raises:
        WeightsError: missing, empty, truncated, not a checkpoint, contains code, or holds more than tensors.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == SAFETENSORS:
        problem = safetensors_problem(path)
        if problem is not None:
            raise WeightsError(f"{path} {problem}; download or copy it again")
        try:
            tree: Any = load_file(path)
        except (SafetensorError, OSError, ValueError, OverflowError) as error:  # overlaps, unknown types, ...
            raise WeightsError(
                f"{path} has a damaged header ({_last_line(error)}); download or copy it again"
            ) from error
    else:
        tree = _load_torch(path, kind)
    if isinstance(tree, Mapping) and isinstance(tree.get("state_dict"), Mapping):
        tree = tree["state_dict"]
    return _only_tensors(tree, path)


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    what: str = "weights",
) -> None:
    """Fill a module from a state dict, or refuse and leave the module as it was.

    Parameters on the meta device are replaced by the given tensors (in the data type of these); others are copied into.

    Args:
        module: what to fill.
        state_dict: names and tensors.
        allow_missing: regular expressions (searched); names of the module that may be absent from `state_dict`.
        allow_unexpected: regular expressions (searched); names of `state_dict` that are left out silently.
        what: what is being loaded, for the message (a file name, say).

    Raises:
        WeightsError: lists missing, unexpected and mis-shaped names and says what the reason probably is.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    may_miss, may_drop = [re.compile(p) for p in allow_missing], [re.compile(p) for p in allow_unexpected]
    given = {
        name: tensor
        for name, tensor in state_dict.items()
        if name in expected or not any(pattern.search(name) for pattern in may_drop)
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    missing = [n for n in expected if n not in given and not any(pattern.search(n) for pattern in may_miss)]
    unexpected = [name for name in given if name not in expected]
    misshaped = [name for name, shape in shapes.items() if name in expected and shape != expected[name]]
    if missing or unexpected or misshaped:
        lines = [f"{what} does not fit {type(module).__name__} ({len(expected)} tensors expected, {len(given)} given)"]
        lines += _listed("missing", missing)
        lines += _listed("unexpected", unexpected)
        lines += _listed("wrong shape", [f"{n} is {shapes[n]}, expected {expected[n]}" for n in misshaped])
        reason = misfit_reason(expected, shapes)
        raise WeightsError("; ".join(lines) + (f". {reason}" if reason else ""))
    on_meta = any(tensor.is_meta for tensor in module.state_dict().values())
    try:
        module.load_state_dict(given, strict=False, assign=on_meta)
    except RuntimeError as error:
        raise WeightsError(f"{what} cannot be loaded into {type(module).__name__}: {_last_line(error)}") from error


def check_finite(state_dict: Mapping[str, Tensor], *, what: str = "weights") -> None:
    """Refuse weights with NaN or infinity in them.

    Args:
        state_dict: names and tensors; integer tensors are passed over.
        what: what is being checked, for the message.

    Raises:
        WeightsError: lists the first names.
    """
    bad = []
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() or tensor.is_complex():
            # Eight-bit floats have no isfinite of their own.
            values = tensor.float() if tensor.element_size() == 1 else tensor
            if not bool(torch.isfinite(values).all()):
                bad.append(name)
    if bad:
        shown = "; ".join(_listed("NaN or infinity in", bad))
        raise WeightsError(
            f"{what}: {shown}. Training diverged or the file is damaged; use an earlier checkpoint or fetch it again"
        )


def save_safetensors(
    state_dict: Mapping[str, Tensor], path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors; the file appears complete under its name or not at all. An existing file is replaced.

    Args:
        state_dict: names and tensors; tensors that share memory are stored twice.
        path: the final name; its folder is made.
        metadata: texts for the file's header.

    Returns:
        The path.

    Raises:
        WeightsError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is not a regular file; give a file name such as model.safetensors")
    temporary = temporary_name(path)
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        flush(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} cannot be written ({error}); make room on the disk or choose a folder that you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _load_torch(path: Path, kind: str) -> Any:
    expected = "expected a file of tensors alone (safetensors, or torch.save of a state dict)"
    if kind == TORCH_ZIP and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is cut off: the end of the file is missing; download or copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on kinds of pickle and archives: we say ourselves what is wrong
            # Large files are mapped: only what is used is read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == TORCH_ZIP)
    except _UNREADABLE as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found or "TorchScript" in str(error):
            code = f"a call of {found[1]}" if found else "a TorchScript program"
            raise WeightsError(
                f"{path} contains code ({code}); nothing of it was run. {expected[0].upper()}{expected[1:]}"
            ) from error
        if kind == TORCH_LEGACY and isinstance(error, EOFError | RuntimeError):
            raise WeightsError(f"{path} is cut off or damaged; download or copy it again") from error
        raise WeightsError(f"{path} is not a torch checkpoint, or damaged ({_last_line(error)}); {expected}") from error


def _only_tensors(tree: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, expected a state dict (names and tensors)")
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": tensor for inner, tensor in value.items()})
        else:
            flat[str(name)] = value
    others = [f"{name} ({type(value).__name__})" for name, value in flat.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path}: {'; '.join(_listed('entries that are no tensors', others))}. Expected names and tensors alone; "
            "save the model's state_dict() by itself"
        )
    if not flat:
        raise WeightsError(f"{path} holds no tensors; expected a state dict")
    result = {name.removeprefix("module."): tensor.detach() for name, tensor in flat.items()}
    if len(result) != len(flat):
        raise WeightsError(
            f"{path} holds the same names with and without 'module.'; it is a mixture of two checkpoints"
        )
    return result


def _listed(label: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{label} ({len(names)}): {', '.join(names[:SHOWN])}{more}"]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Check the documentation")]
    if isinstance(error, MemoryError) or not lines:
        return "it asks for more memory than there is" if isinstance(error, MemoryError) else "nothing is known of it"
    return "text in it is no UTF-8" if isinstance(error, UnicodeDecodeError) else lines[-1][:200]
