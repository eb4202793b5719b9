"""Where the files lie that are no code: configs, weights, the demo's media; and where new ones may be put.

In a checkout (or an editable install of one) they are `configs/`, `pretrained/` and `assets/` beside the package; a
wheel carries copies inside the package.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
_CARRIED = _PACKAGE / "_files"  # where the wheel maps the folders to (pyproject.toml)


def checkout() -> Path | None:
    """The folder of the source checkout that this package runs from; None where it was installed."""
    there = (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "configs").is_dir()
    return _CHECKOUT if there else None


def resource(*parts: str) -> Path:
    """Path of a file or folder that xdyna ships; whether it exists is for the caller to see.

    Args:
        parts: of the name, as in the repository: `resource("configs", "infer.yaml")`.
    """
    return (checkout() or _CARRIED).joinpath(*parts)


def home() -> Path:
    """The user's folder for what xdyna keeps: `XDYNA_HOME`, else `~/.local/share/xdyna` (or `XDG_DATA_HOME`)."""
    if own := os.environ.get("XDYNA_HOME"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").expanduser() / "xdyna"


def cache_folder() -> Path:
    """Where what can be made anew is kept: `XDYNA_CACHE`, else `~/.cache/xdyna`."""
    own = os.environ.get("XDYNA_CACHE")
    return Path(own).expanduser() if own else Path.home() / ".cache" / "xdyna"


def weights_folder() -> Path:
    """Where downloaded and converted weights go: `pretrained/` of a checkout, else of `home()`."""
    return (checkout() or home()) / "pretrained"


def pretrained(name: str) -> Path:
    """The folder of weights that goes by a name ("xdyna-tiny"): the user's own before the one that is shipped.

    Args:
        name: of a folder below `pretrained/`.

    Returns:
        The folder; where there is none, the place where it would be put.
    """
    own, shipped = weights_folder() / name, resource("pretrained", name)
    return own if own.exists() or not shipped.exists() else shipped
