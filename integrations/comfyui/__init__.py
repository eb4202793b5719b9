"""Nodes of xdyna for ComfyUI: put this folder into ComfyUI's custom_nodes, and xdyna into its Python."""

import importlib.util
import sys

if importlib.util.find_spec("xdyna") is None:
    raise ImportError(
        f"these nodes need the package xdyna in ComfyUI's own Python ({sys.executable}), where it is missing; install "
        f"it there: {sys.executable} -m pip install 'xdyna[perception]'"
    )

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
