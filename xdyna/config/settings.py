"""Ranges and choices of settings, stated once beside each field: checked by one function, shown in the flags' help."""

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

from xdyna.core.errors import ConfigError


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    needed: bool = False,
    bare: str | None = None,
) -> Any:
    """A field of a schema with what its value may be.

    Args:
        default: value where none is given; a list is copied for each instance.
        low: smallest value, itself allowed.
        high: largest value, itself allowed.
        above: the value must be larger than this.
        choices: the values there are; of a list: of its entries.
        needed: composed configurations must give the value; `default` is for objects made in Python.
        bare: value of the flag where it stands alone.

    Returns:
        The dataclass field.
    """
    limits = {"low": low, "high": high, "above": above, "choices": tuple(choices), "needed": needed, "bare": bare}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=limits)
    return dataclasses.field(default=default, metadata=limits)


def allowed(field: "dataclasses.Field[Any]") -> str:
    """What a field's value may be, in words: "1 to 1000", "more than 0", "one of a, b"; "" where anything goes."""
    limits = field.metadata
    if limits.get("choices"):
        return f"one of {', '.join(limits['choices'])}"
    low, high, above = (limits.get(name) for name in ("low", "high", "above"))
    if above is not None:
        return f"more than {above:g}" + ("" if high is None else f", at most {high:g}")
    if low is not None:
        return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
    return "" if high is None else f"at most {high:g}"


def descriptions(schema: type[Any]) -> dict[str, str]:
    """What each setting is, from the section "Attributes" of the schema's docstring. Args: schema: a dataclass."""
    lines = inspect.cleandoc(schema.__doc__ or "").splitlines()
    start = next((k + 1 for k, line in enumerate(lines) if line == "Attributes:"), len(lines))
    found: dict[str, str] = {}
    name = ""
    for line in lines[start:]:
        if line and not line.startswith(" "):
            break
        if entry := re.match(r" {4}(\w+): (.*)", line):
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def check_settings(config: Any, *, section: str = "", error: type[ValueError] = ConfigError) -> None:
    """See that every value of a schema's instance is one that its field allows. None is never out of range.

    Args:
        config: instance of a dataclass whose fields are made by `setting`.
        section: where it stands in the whole configuration, for messages: "optim".
        error: what is raised.

    Raises:
        ValueError: of the class `error`, for the first value that is not allowed.
    """
    prefix = f"{section}." if section else ""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, list | tuple) else [value]
        for entry in values:
            if entry is not None and not _fits(field, entry):
                whole = "a whole number, " if _is_whole(field) and isinstance(entry, float) else ""
                raise error(
                    f"{prefix}{field.name}: got {entry!r}, expected {whole}{allowed(field)}{_hint(field, entry)}"
                )


def _fits(field: "dataclasses.Field[Any]", value: Any) -> bool:
    limits = field.metadata
    if limits.get("choices"):
        return value in limits["choices"]
    low, high, above = (limits.get(name) for name in ("low", "high", "above"))
    if low is None and high is None and above is None:
        return True
    if isinstance(value, str | bool) or not math.isfinite(value) or (_is_whole(field) and value != int(value)):
        return False
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    return not too_low and (high is None or value <= high)


def _is_whole(field: "dataclasses.Field[Any]") -> bool:
    kind = str(field.type)  # a class, a union of classes, or their text
    return "int" in kind and "float" not in kind


def _hint(field: "dataclasses.Field[Any]", value: Any) -> str:
    near = difflib.get_close_matches(str(value), field.metadata.get("choices") or (), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
