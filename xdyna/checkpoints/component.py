"""Loading one network of a pipeline folder, strictly."""

import importlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from xdyna.checkpoints.io import check_finite
from xdyna.core.errors import WeightsError

# Shapes; values and files of a configuration; unknown or missing keys; tensors without data; damaged bytes; sizes of 0.
WRONG_PARTS = (RuntimeError, ValueError, OSError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError,
          ImportError, SafetensorError)  # fmt: skip


def load_component(folder: Path, library: str, class_name: str, *, dtype: torch.dtype) -> torch.nn.Module:
    """Load one network from its folder strictly.

    Args:
        folder: with config.json and safetensors.
        library: "diffusers", "transformers" or a module of xdyna.
        class_name: name of the class there.
        dtype: floating-point type to load in.

    Returns:
        Module: in evaluation mode, on the CPU.

    Raises:
        WeightsError: another library, or missing, unexpected, mis-shaped or non-finite weights.
    """
    if library not in ("diffusers", "transformers") and not library.startswith("xdyna."):
        raise WeightsError(
            f"{folder.parent}/model_index.json names the library {library!r}, which is not used by xdyna"
        )
    try:
        component = getattr(importlib.import_module(library), class_name, None)
    except ImportError as error:
        raise WeightsError(f"{folder.parent}/model_index.json names the module {library}: {error}") from error
    if not (isinstance(component, type) and issubclass(component, torch.nn.Module)):
        what = "does not exist" if component is None else "is no network"
        raise WeightsError(f"{folder.parent}/model_index.json names {library}.{class_name}, which {what}")
    options: dict[str, Any] = {"output_loading_info": True, "use_safetensors": True, "local_files_only": True}
    options["dtype" if library == "transformers" else "torch_dtype"] = dtype
    try:
        module, info = component.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    except WRONG_PARTS as error:
        reason = reason_of(error)
        raise WeightsError(
            f"{folder} cannot be loaded as {class_name}: {reason} (is this another architecture, or a damaged copy?)"
        ) from error
    problems = {
        kind: [name for name in sorted(map(str, names)) if not name.endswith(".position_ids")]  # computed, not learned
        for kind, names in info.items()
        if kind != "error_msgs"
    }
    problems = {kind: names for kind, names in problems.items() if names}
    if problems:
        text = "; ".join(f"{kind} ({len(names)}): {', '.join(names[:10])}" for kind, names in problems.items())
        raise WeightsError(f"{folder}: the weights do not fit {class_name}: {text}")
    check_finite(module.state_dict(), what=str(folder))
    return module.eval()


def reason_of(error: Exception) -> str:
    """The first line of a library's error, without its advice and its words of Python. Args: error: what was raised."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[0].split(" If you want")[0]  # diffusers' advice is not for users
    if isinstance(error, LookupError | AttributeError | ArithmeticError | TypeError):
        return "a value in its configuration is missing or cannot be meant"
    return re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", line)
