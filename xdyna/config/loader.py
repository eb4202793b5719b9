"""Typed configuration: YAML becomes one dataclass at the door; nothing behind it sees OmegaConf.

`load_config(InferConfig, "configs/infer/default.yaml", ["steps=10"])` reads the file, applies the overrides, checks
every key, type and range, and returns an `InferConfig`. What is wrong is one `ConfigError` that names the key, where it
was given, what was expected and the nearest valid key.
"""

import dataclasses
import difflib
import itertools
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xdyna.core.errors import ConfigError

Schema = TypeVar("Schema")


def load_config(
    schema: type[Schema], path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Schema:
    """Read and check a configuration.

    Args:
        schema: a dataclass; its defaults hold for everything that is not given.
        path: a YAML file, or None.
        overrides: a mapping of keys to values, or "key=value" strings (the value is YAML: `fps=null`); they win over
            the file. Nested keys are written with dots.

    Returns:
        An instance of `schema`.

    Raises:
        ConfigError: missing or unreadable file, invalid YAML, unknown key, wrong type, value out of range.
    """
    layers: list[tuple[str, Any]] = []
    if path is not None:
        layers.append((f"in {path}", _read_yaml(Path(path))))
    layers.append(("in the overrides", _override_tree(overrides)))
    return _build(schema, layers)


def compose_config(
    schema: type[Schema], path: str | os.PathLike[str], overrides: Iterable[str] = (), *, groups: str | os.PathLike[str]
) -> Schema:
    """Read a configuration that Hydra puts together: its `defaults` list names others, and groups can be chosen.

    Args:
        schema: a dataclass.
        path: a YAML file; it may lie anywhere.
        overrides: "key=value" strings; "group=name" (`model=tiny`) takes another file of a group.
        groups: the folder of the groups (`configs`).

    Returns:
        An instance of `schema`.

    Raises:
        ConfigError: as `load_config`, and for a group or file that does not exist.
    """
    path, groups = Path(path), Path(groups).resolve()
    _read_yaml(path)  # names what is wrong with the file itself better than Hydra does
    if path.suffix != ".yaml":
        raise ConfigError(f"config file {path}: expected a name that ends in .yaml (Hydra reads no other)")
    choices: list[str] = []
    values: list[str] = []
    for text in overrides:
        (choices if _is_choice(schema, text, groups) else values).append(text)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base=None, config_dir=str(path.resolve().parent)):
            composed = compose(path.stem, overrides=[*choices, f"hydra.searchpath=[file://{groups}]"])
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises plain ValueErrors too
        lines = [line.strip() for line in str(error or error.__cause__).splitlines() if line.strip()]
        told = itertools.takewhile(lambda line: not line.startswith(("Config search path", "object_type")), lines)
        what = " ".join(told) or f"{type(error).__name__}: a value cannot be read; is every ${{ closed by }}?"
        raise ConfigError(f"{path}{' with ' if choices else ''}{' '.join(choices)}: {what}") from error
    return _build(schema, [(f"in {path}", tree), ("in the overrides", _override_tree(values))])


def _is_choice(schema: Any, text: str, groups: Path) -> bool:
    """Whether an override takes another file of a group: "model=tiny", but not "model.unet={}" or "train=[adapter]"."""
    key, _, name = (part.strip() for part in text.partition("="))
    if not dataclasses.is_dataclass(typing.get_type_hints(schema).get(key)) or not (groups / key).is_dir():
        return False
    if not re.match(r"[A-Za-z]", name) or name == "null":
        return False
    there = sorted(str(file.relative_to(groups / key).with_suffix("")) for file in (groups / key).rglob("*.yaml"))
    if name not in there:
        raise ConfigError(f"{key}={name}: there is no {groups / key / name}.yaml; expected one of {', '.join(there)}")
    return True


def _build(schema: type[Schema], layers: Sequence[tuple[str, Any]]) -> Schema:
    merged: Any = OmegaConf.structured(schema)
    for where, tree in layers:
        _check_keys(schema, tree, where)
        for key, value in tree.items():
            merged = _merge(merged, schema, {key: value}, where)
    sources = " and ".join(where for where, tree in layers if tree) or "in the defaults"
    try:
        return typing.cast(Schema, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_first_line(error)} ({sources})") from error
    except ConfigError as error:
        raise ConfigError(f"{error} ({sources})") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        kind = "is a folder, expected a YAML file" if path.is_dir() else "does not exist"
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; examples are in configs/"
        raise ConfigError(f"config file {path} {kind}{hint}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not UTF-8 text; expected YAML lines like 'steps: 25'") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise ConfigError(f"config file {path}{line} is not valid YAML: {problem}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} holds a {type(tree).__name__}, expected lines like 'steps: 25'")
    return {str(key): value for key, value in tree.items()}


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, and 1e-5 is a number (YAML 1.1 wants 1.0e-5)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a repeated key would silently win otherwise."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for i, key in enumerate(keys) if key in keys[:i]]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _override_tree(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    if isinstance(overrides, str):
        raise TypeError("overrides must be a mapping or a sequence of strings, not one string")
    pairs: list[tuple[str, Any]] = []
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"override {text!r}: expected key=value, for example steps=10")
            try:
                pairs.append((key.strip(), yaml.load(value, Loader=_StrictLoader) if value else ""))
            except yaml.YAMLError as error:
                raise ConfigError(f"override {text!r}: the value is not valid YAML; put text into quotes") from error
    tree: dict[str, Any] = {}
    for key, value in pairs:
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"override {key!r}: {parent!r} was given a value before, so it cannot have keys")
        branch[last] = value
    return tree


def _check_keys(schema: Any, tree: Any, where: str, prefix: str = "") -> None:
    hints = typing.get_type_hints(schema)
    names = [entry.name for entry in dataclasses.fields(schema)]
    for key, value in tree.items():
        if key not in names:
            near = difflib.get_close_matches(str(key).replace("-", "_"), names, n=1, cutoff=0.5)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"valid keys: {', '.join(names)}"
            raise ConfigError(f"unknown key '{prefix}{key}' {where}; {hint}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            _check_keys(hints[key], value, where, prefix=f"{prefix}{key}.")


def _merge(config: DictConfig, schema: Any, tree: dict[str, Any], where: str) -> DictConfig:
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, OmegaConf.create(tree)))
    except OmegaConfBaseException as error:
        key = error.full_key or next(iter(tree))
        value, expected = _look_up(tree, key), _type_name(schema, key)
        raise ConfigError(f"{key}: got {value!r} {where}, expected {expected}") from error


def _look_up(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return tree
        tree = tree[part]
    return tree


def _type_name(schema: Any, key: str) -> str:
    kind: Any = schema
    for part in key.split("."):
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part, kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_plain_name(part) for part in typing.get_args(kind))
    return _plain_name(kind)


def _plain_name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "a section with keys"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    names[dict] = "a section with keys"
    return names.get(typing.get_origin(kind) or kind, str(kind))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
