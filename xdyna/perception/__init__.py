"""Videos and pictures to controls: people as numbers, skeleton pictures, face patches."""

from xdyna.perception.errors import PerceptionError, PerceptionWarning

__all__ = ["PerceptionError", "PerceptionWarning"]
