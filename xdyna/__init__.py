"""xdyna: animate a picture of a person with the motion and the expression of a driving video.

Importing the package loads nothing heavy; its names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdyna.pipelines.xdyna import XDynaPipeline

__all__ = ["XDynaPipeline"]
__version__ = "0.1.0.dev0"

_MODULES = {"XDynaPipeline": "xdyna.pipelines.xdyna"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
