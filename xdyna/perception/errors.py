"""Errors and warnings of the perception package."""

from __future__ import annotations

from xdyna.core.errors import XDynaWarning


class PerceptionError(ValueError):
    """A person or face cannot be read; the message says what was given, what was expected and how to mend it."""


class NoFaceError(PerceptionError):
    """No face was found where face control needs one."""


class PerceptionWarning(XDynaWarning):
    """Perception went on, but in a way the user should know of (a damaged cache file, for instance)."""
