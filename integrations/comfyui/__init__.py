"""Nodes of xdyna for ComfyUI: put this folder into ComfyUI's custom_nodes, and xdyna into its Python."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("xdyna") is None:
    checkout = Path(__file__).resolve().parents[2]  # the folder may be a link into it
    what = f'-e "{checkout}[perception]"' if (checkout / "xdyna").is_dir() else "WHEEL_OF_XDYNA[perception]"
    raise ImportError(
        f"these nodes need the package xdyna in ComfyUI's own Python ({sys.executable}), where it is missing; install "
        f"it there: {sys.executable} -m pip install {what}"
    )

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
