"""What is wrong with a configuration, in one sentence: Hydra's and OmegaConf's errors in our words."""

import contextlib
import dataclasses
import difflib
import itertools
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from xdyna.config.settings import descriptions
from xdyna.core.errors import ConfigError

FORMER = ("accumulation", "batch_size")  # keys of earlier releases: the values of today's mean something else
NOW = (
    "batch_size and accumulation are now batch (clips of a step: batch_size x accumulation x processes) and "
    "micro_batch (clips of a process at once: batch_size)"
)
UNKNOWN = (ConfigAttributeError, ConfigKeyError)


@contextlib.contextmanager
def explained(schema: Any, root: str, overrides: Sequence[str], folders: Sequence[Path]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise inside into a `ConfigError` of one line.

    Args:
        schema: the dataclass that is filled.
        root: name of the root config.
        overrides: what was given.
        folders: where configs are searched.

    Raises:
        ConfigError: instead of their errors.
    """
    try:
        yield
    except OverrideParseException as error:
        raise ConfigError(_unparsed(error)) from error
    except MissingConfigException as error:
        raise ConfigError(_no_such_config(error, overrides, folders)) from error
    except HydraException as error:
        raise ConfigError(_from_hydra(error, schema, root, overrides, folders)) from error
    except yaml.YAMLError as error:
        raise bad_file(None, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"a config file in {folders[0]} is not UTF-8 text ({error.reason})") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_from_omegaconf(error, schema)) from error
    except RecursionError as error:
        raise ConfigError(f"{root} with {' '.join(overrides)}: a config chooses itself among its defaults") from error
    except ValueError as error:
        if type(error) is not ValueError:  # what schemas raise has a class of its own, and says what is wrong
            raise
        told = "a number of too many digits" if "integer string" in str(error) else _line(error)
        raise ConfigError(f"{root} with {' '.join(overrides) or 'no overrides'}: {told}") from error


def bad_file(path: Path | None, error: Exception) -> ConfigError:
    """The error for a file that is no YAML. Args: path: None where the error knows it; error: what was raised."""
    mark = getattr(error, "problem_mark", None)
    name = path or (mark.name if mark is not None else "?")
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"config file {name} is not UTF-8 text; expected YAML lines like 'steps: 25'")
    line = f", line {mark.line + 1}" if mark is not None else ""
    return ConfigError(f"config file {name}{line} is not valid YAML: {getattr(error, 'problem', None) or _line(error)}")


def missing_value(schema: Any, key: str) -> ConfigError:
    """The error for a value that must be given and is not. Args: schema; key: with dots."""
    *parents, last = key.split(".")
    told = _described(schema, parents).get(last, "").partition(";")[0].rstrip(".")
    example = f"'{key}=[...]'" if _type_name(schema, key) == "a list" else f"{key}=VALUE"
    return ConfigError(f"{key} must be given{f' ({told})' if told else ''}: add {example}")


def two_presets(first: str, other: str) -> ConfigError:
    """The error for two presets one by one: Hydra would take the last alone. Args: first, other: as given."""
    both = ",".join(word.partition("=")[2].strip("[]") for word in (first, other))
    return ConfigError(
        f"{first} and {other}: the last alone would hold; for both give preset=[{both}] (of two values for a key the "
        "last one's is taken), or leave one out"
    )


def check_keys(schema: Any, tree: Any, where: str = "", prefix: str = "") -> None:
    """See that a schema has every key of a tree; free dictionaries hold what they like.

    Args:
        schema: a dataclass.
        tree: plain dictionaries.
        where: " in FILE", for the message.
        prefix: of the keys' names, with a dot at its end.

    Raises:
        ConfigError: an unknown key; the message names the nearest one.
    """
    hints = typing.get_type_hints(schema)
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(unknown_key(schema, f"{prefix}{key}", where, names=list(hints)))
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            check_keys(hints[key], value, where, prefix=f"{prefix}{key}.")


def check_override(schema: Any, override: Override) -> None:
    """See that `+` and `~` are used on free dictionaries, the only place where keys come and go.

    Args:
        schema: a dataclass.
        override: of a key, not of a group.

    Raises:
        ConfigError: it is used on a key of the schema, or on one that there is not.
    """
    key = override.key_or_group
    *parents, last = key.split(".")
    if not re.fullmatch(r"[^.=]+(\.[^.=]+)*", key):
        raise ConfigError(f"override {override.input_line!r}: expected key=value, for example steps=10")
    if _is_free(schema, parents):
        return
    path = [*parents, last]
    known = all(part in _fields_at(schema, path[:k]) for k, part in enumerate(path))
    if override.is_delete() and known:
        raise ConfigError(f"~{key}: only entries of free dictionaries can be taken away; give {key} another value")
    if (override.is_add() or override.is_force_add()) and not known:
        free = ", ".join(_free_dictionaries(schema))
        rule = f"+ adds to free dictionaries only ({free})" if free else "there is nothing to add to"
        raise ConfigError(f"{override.input_line}: {rule}; {unknown_key(schema, key)}")


def unknown_key(schema: Any, key: str, where: str = "", *, names: list[str] | None = None) -> str:
    """The sentence for a key that no schema has, with the nearest one there is."""
    *parents, last = key.split(".")
    names = list(_fields_at(schema, parents)) if names is None else names
    prefix = "".join(f"{parent}." for parent in parents)
    if last in FORMER and "micro_batch" in names:
        return f"unknown key '{key}'{where}; {NOW}"
    near = difflib.get_close_matches(last.replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f"did you mean '{prefix}{near[0]}'?" if near else f"valid keys: {', '.join(names)}"
    return f"unknown key '{key}'{where}; {hint}"


def _from_hydra(
    error: HydraException, schema: Any, root: str, overrides: Sequence[str], folders: Sequence[Path]
) -> str:
    text, cause = str(error), error.__cause__ or error.__context__
    if found := re.match(r"In '(.+?)': \w+ raised while composing config", text):
        return _in_file(found[1], cause, schema, folders)
    if found := re.match(r"Error merging override (.+)", text):
        return _in_override(found[1], cause, schema)
    if found := re.match(r"Could not override '(.+?)'\.(?: No match in the defaults list)?", text):
        return _not_there(found[1], cause, schema, root, folders)
    if found := re.match(r"Could not append to config\. An item is already at '(.+?)'", text):
        return f"+{found[1]}: it has a value already; leave the + out: {found[1]}=VALUE"
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        key, _, value = found[1].partition("=")
        listed = f", a list {key}=[{value}]" if "(" not in value else ""
        return f"{key}: got {value!r}, which are several values; expected one{listed}, or --multirun (a job with each)"
    told = itertools.takewhile(lambda line: not line.startswith(("Config search path", "object_type")), _lines(error))
    return " ".join(told) or _line(cause or error)


def _from_omegaconf(error: OmegaConfBaseException, schema: Any) -> str:
    key = error.full_key or ""
    if isinstance(error, InterpolationResolutionError) or not key:
        line = re.sub(
            r"^\w+ raised while resolving interpolation", "the interpolation cannot be resolved", _line(error)
        )
        return f"{key}: {line}" if key else line
    return f"{key}: {_line(error)}; expected {_type_name(schema, key)}"


def _in_file(config: str, cause: Any, schema: Any, folders: Sequence[Path]) -> str:
    """Something in a file: it knows the key, and the file has the value."""
    path = next((each for folder in folders if (each := folder / f"{config}.yaml").is_file()), None)
    where, key = f" in {path or config}", getattr(cause, "full_key", None) or ""
    if isinstance(cause, UNKNOWN):
        group = key.partition(".")[0]
        if group not in typing.get_type_hints(schema) and any((folder / group).is_dir() for folder in folders):
            return (
                f"{path or config} would fill a section {group!r}, which there is not; files of the group {group} "
                "begin with '# @package _global_', and choose others in their defaults by 'override /GROUP: NAME'"
            )
        return unknown_key(schema, key, where)
    if not key:
        return f"config file {path or config}: expected lines like 'steps: 25' ({_line(cause)})"
    value = _value_in(path, key)
    return f"{key}: got {value!r}{where}, expected {_type_name(schema, key)}"


def _in_override(text: str, cause: Any, schema: Any) -> str:
    override = OverridesParser.create().parse_override(text)
    key, value = override.key_or_group, override.value()
    if isinstance(cause, UNKNOWN):
        return unknown_key(schema, getattr(cause, "full_key", None) or key)
    inner = getattr(cause, "full_key", None) or key
    for part in inner.removeprefix(key).strip(".").split("."):
        value = value[part] if isinstance(value, dict) and part in value else value
    return f"{inner}: got {value!r}, expected {_type_name(schema, inner)}"


def _not_there(key: str, cause: Any, schema: Any, root: str, folders: Sequence[Path]) -> str:
    if any((folder / key).is_dir() for folder in folders) and "." not in key:
        used = groups(root, folders)
        return f"{key}: the group is not one of {root}'s, which are {', '.join(used) or 'none'}"
    *parents, last = key.split(".")
    if parents and _is_free(schema, parents):
        section = ".".join(parents)
        return f"{key}: {section} has no entry {last!r}; give +{key}=VALUE to add one"
    return unknown_key(schema, getattr(cause, "full_key", None) or key)


def groups(root: str, folders: Sequence[Path]) -> list[str]:
    """The groups that a root config chooses from. Args: root: its name; folders: where configs are searched."""
    path = next((each for folder in folders if (each := folder / f"{root}.yaml").is_file()), None)
    defaults = OmegaConf.to_container(OmegaConf.load(path)).get("defaults", []) if path else []  # type: ignore[union-attr]
    return [str(key) for entry in defaults if isinstance(entry, dict) for key in entry]


def _no_such_config(error: MissingConfigException, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    told = str(error)
    found = re.search(r"Could not find '(.+?)'", told)
    if not found:
        return _line(error)
    group, _, name = found[1].rpartition("/")
    for override in overrides:  # name what was typed, groups in groups included
        key, _, value = override.lstrip("+").partition("=")
        if found[1] == f"{key}/{value}":
            group, name = key, value
    paths = [(path, folder / group) for folder in folders for path in (folder / group).rglob("*.yaml")]
    there = sorted({str(path.relative_to(at).with_suffix("")) for path, at in paths if path.stem[0] != "_"})
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(there)}" if there else "is it misspelt?"
    parent = re.match(r"In '(.+?)'", told)
    where = f" (in {parent[1]})" if parent and f"{group}={name}" not in overrides else ""
    return f"{group}={name}: there is no config {found[1]}{where}; {hint}"


def _unparsed(error: OverrideParseException) -> str:
    text = error.override
    if "=" not in text and not text.startswith("~"):
        return f"override {text!r}: expected key=value, for example steps=10"
    told = re.sub(r"^\w+Exception:.*", "it ends too early, or holds a letter that needs quotes", _line(error))
    return f"override {text!r} is not in Hydra's grammar ({told}); put text into quotes: \"key='a, b'\""


def _value_in(path: Path | None, key: str) -> Any:
    tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path else None
    parts = key.split(".")
    for start in range(len(parts)):  # a config of a group stands at its group's place: its keys are shorter
        found, at = True, tree
        for part in parts[start:]:
            found = found and isinstance(at, dict) and part in at
            at = at[part] if found else None
        if found:
            return at
    return None


def _fields_at(schema: Any, parents: Sequence[str]) -> dict[str, Any]:
    """Names and types of the keys of a section; of the last known one where the parents are unknown."""
    hints = typing.get_type_hints(schema)
    for parent in parents:
        if dataclasses.is_dataclass(hints.get(parent)):
            hints = typing.get_type_hints(hints[parent])
    return hints


def _described(schema: Any, parents: Sequence[str]) -> dict[str, str]:
    for parent in parents:
        schema = typing.get_type_hints(schema).get(parent, schema)
    return descriptions(schema)


def _is_free(schema: Any, parents: Sequence[str]) -> bool:
    """Whether these keys lead into a dictionary that may hold any key."""
    kind: Any = schema
    for parent in parents:
        if not dataclasses.is_dataclass(kind):
            break
        kind = typing.get_type_hints(kind).get(parent)
    return typing.get_origin(kind) is dict


def _free_dictionaries(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from _free_dictionaries(kind, f"{prefix}{name}.")
        elif typing.get_origin(kind) is dict:
            yield f"{prefix}{name}"


def _type_name(schema: Any, key: str) -> str:
    kind: Any = schema
    for part in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part.partition("[")[0], kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_plain_name(part) for part in typing.get_args(kind))
    return _plain_name(kind)


def _plain_name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a section with keys"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    names |= {dict: "a section with keys", list: "a list"}
    return names.get(typing.get_origin(kind) or kind, str(kind))


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def _line(error: BaseException) -> str:
    return next(iter(_lines(error)), type(error).__name__)
