"""Errors and warnings of training: what was given, what was expected and how to mend it."""

from xdyna.core.errors import XDynaWarning


class TrainingError(ValueError):
    """Training cannot start or go on."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read."""


class NonFiniteLossError(TrainingError):
    """The loss is NaN or infinite."""


class RunError(TrainingError):
    """The folder of a run does not fit the run."""


class TrainingWarning(XDynaWarning):
    """Training goes on, but not quite as asked; the message says what differs."""
