"""The one loader: Hydra composes YAML and overrides, one dataclass comes out; nothing behind it sees OmegaConf.

`compose(TrainConfig, "train", ["experiment=dynamics", "optim.lr=1e-4"])` reads `configs/train.yaml`, applies the
overrides in Hydra's own grammar, checks every key, type and range, and returns the `TrainConfig` and the composed tree.
What is wrong is one `ConfigError` that names the key, where it was given, what was expected and the nearest valid key
(see `xdyna.config.mistakes`).
"""

import contextlib
import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xdyna.config import mistakes
from xdyna.config.bounds import check_size
from xdyna.config.convert import ConvertConfig
from xdyna.config.model import ModelConfig
from xdyna.core.errors import ConfigError
from xdyna.core.resources import resource

Schema = TypeVar("Schema")

CONFIGS = resource("configs")


class Composed(NamedTuple, Generic[Schema]):
    """A configuration.

    Attributes:
        config: the typed object.
        tree: the same as plain dictionaries, before anything was derived from it; for files.
    """

    config: Schema
    tree: dict[str, Any]


def compose(
    schema: type[Schema],
    root: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: str | os.PathLike[str] | None = None,
    placeholders: Mapping[str, Any] | None = None,
) -> Composed[Schema]:
    """Put a configuration together and check it.

    Args:
        schema: a dataclass; its defaults hold for everything that is not given.
        root: name of a file right in `configs` (or in `config_dir`), without ".yaml".
        overrides: in Hydra's grammar: "key=value", "group=name", "+key=value", "++key=value", "~key".
        config_dir: a folder of the user's own, laid out like `configs` and searched first.
        placeholders: stand in for values that must be given ("???") and are not, by dotted key.

    Returns:
        Composed: the object and the tree.

    Raises:
        ConfigError: unknown key or group, wrong type, value out of range, missing value, invalid YAML.
        ValueError: what the schema itself raises for values that contradict each other.
    """
    with _prepared(schema, root, overrides, config_dir) as (hydra, words):
        composed = hydra.compose_config(
            root, words, run_mode=RunMode.RUN, from_shell=False, with_log_configuration=False
        )
        with open_dict(composed):
            del composed["hydra"]
        mistakes.check_keys(schema, OmegaConf.to_container(composed, resolve=False))
        for key in sorted(OmegaConf.missing_keys(composed)):
            if key not in (placeholders or {}):
                raise mistakes.missing_value(schema, key)
            OmegaConf.update(composed, key, (placeholders or {})[key])
        merged = typing.cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), composed))
        tree = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
        return Composed(typing.cast(Schema, OmegaConf.to_object(merged)), tree)


def load_model(name: str, config_dir: str | os.PathLike[str] | None = None) -> ModelConfig:
    """Sizes of the networks of `configs/model/NAME.yaml`.

    Args:
        name: "sd15", "tiny", ...
        config_dir: as for `compose`.

    Raises:
        ConfigError: there is none of that name, or something in it is wrong.
    """
    return compose(ConvertConfig, "convert", [f"model={name}"], config_dir=config_dir).config.model


def show(
    schema: type[Any],
    root: str,
    overrides: Sequence[str],
    *,
    kind: str,
    config_dir: str | os.PathLike[str] | None = None,
    package: str | None = None,
    resolve: bool = False,
) -> None:
    """Print a composed configuration as Hydra's `--cfg` does.

    Args:
        schema: a dataclass.
        root: as for `compose`.
        overrides: as for `compose`.
        kind: "job" (ours), "hydra" (Hydra's) or "all".
        config_dir: as for `compose`.
        package: only this part, for example "optim".
        resolve: put the values of interpolations in.

    Raises:
        ConfigError: as `compose`, but for values that are missing or out of range; no such package.
    """
    with _prepared(schema, root, overrides, config_dir) as (hydra, words):
        composed = hydra.compose_config(root, words, run_mode=RunMode.RUN, with_log_configuration=False)
        if package not in (None, "_global_") and OmegaConf.select(composed, str(package)) is None:
            raise ConfigError(f"--package {package}: the configuration has no such part")
        hydra.show_cfg(root, words, kind, package, resolve)


def sweep(
    schema: type[Any], root: str, overrides: Sequence[str], *, config_dir: str | os.PathLike[str] | None = None
) -> list[list[str]]:
    """The jobs of a sweep: every combination of the values in "seed=1,2", "choice(...)", "range(...)", "glob(...)".

    Args:
        schema: a dataclass.
        root: as for `compose`.
        overrides: as for `compose`, with sweeps; `hydra.sweeper.params` of the configuration adds its own.
        config_dir: as for `compose`.

    Returns:
        The overrides of each job, in Hydra's order (the last one changes fastest).

    Raises:
        ConfigError: as `compose`; a sweep that Hydra's basic sweeper does not know.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    with _prepared(schema, root, overrides, config_dir) as (hydra, given):
        whole = hydra.compose_config(root, given, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        params = OmegaConf.select(whole, "hydra.sweeper.params") or {}
        words = [*(f"{key}={value}" for key, value in params.items()), *overrides]
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(words)
        plain = [each.input_line for each in parsed if not each.is_sweep_override()]
        (jobs,) = BasicSweeper.split_arguments([each for each in parsed if each.is_sweep_override()], None)
        return [[*(line for line in plain if line is not None), *job] for job in jobs]


def names(group: str, config_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Configs of a group, "experiment/tiny" included in "experiment"; those that begin with "_" are parts of others."""
    found: set[str] = set()
    for folder in folders(config_dir):
        paths = (folder / group).rglob("*.yaml")
        found.update(str(path.relative_to(folder / group).with_suffix("")) for path in paths if path.stem[0] != "_")
    return sorted(found)


def folders(config_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Where configs are searched, in this order.

    Args:
        config_dir: a folder of the user's own.

    Raises:
        ConfigError: there is no such folder.
    """
    if config_dir is None:
        return [CONFIGS]
    own = Path(config_dir).resolve()
    if not own.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder; expected one laid out like configs/")
    return [own, CONFIGS]


def _check_own(config_dir: str | os.PathLike[str] | None) -> None:
    """`check_size` of every config of the user's own folder: Hydra reads them by itself."""
    for path in sorted(Path(config_dir).rglob("*.yaml")) if config_dir is not None else ():
        if path.is_file():
            check_size(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain data. A key given twice is an error, and 1e-5 is a number.

    Raises:
        ConfigError: no such file, or not valid.
    """
    if not path.is_file():
        raise ConfigError(f"config file {path} {'is a folder' if path.is_dir() else 'does not exist'}; expected YAML")
    check_size(path)
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise mistakes.bad_file(path, error) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} holds a {type(tree).__name__}, expected lines like 'steps: 25'")
    return {str(key): value for key, value in tree.items()}


def store_group(group: str, name: str, tree: Mapping[str, Any]) -> None:
    """Make plain data a config of a group, chosen by "group=name".

    Args:
        group: for example "metrics".
        name: of the config.
        tree: its keys and values, from the root of the configuration on.
    """
    ConfigStore.instance().store(group=group, name=name, node=dict(tree), package="_global_")


@contextlib.contextmanager
def _prepared(
    schema: type[Any], root: str, overrides: Sequence[str], config_dir: str | os.PathLike[str] | None
) -> Iterator[tuple[Hydra, list[str]]]:
    """Hydra with the schema and the search path, and the overrides as Hydra takes them; its errors in our words."""
    assert dataclasses.is_dataclass(schema)
    node = OmegaConf.structured(schema)
    for key in _needed(schema):
        OmegaConf.update(node, key, "???")
    ConfigStore.instance().store(group="schema", name=root, node=node, package="_global_")
    searched = folders(config_dir)
    _check_own(config_dir)
    with _searching(config_dir) as hydra, mistakes.explained(schema, root, overrides, searched):
        words: list[str] = []
        lists: dict[str, Any] = {}
        preset = None
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            key = override.key_or_group
            group = bool(key) and any((folder / key).is_dir() for folder in searched)
            if not group and not override.is_hydra_override():
                mistakes.check_override(schema, override)
            if key == "preset":
                if preset not in (None, override.input_line):
                    raise mistakes.two_presets(str(preset), str(override.input_line))
                preset = override.input_line
            listed = override.value() if group and not override.is_sweep_override() else None
            if isinstance(listed, list) and not set(listed) <= set(names(key, config_dir)):
                lists[key] = listed
            else:
                words.append(str(override.input_line))
        for key, listed in lists.items():
            # Hydra takes a list for several configs of the group; here it is the key of the same name.
            store_group(f"value_of_{key}", "given", {key: listed})
            words.append(f"+value_of_{key}=given")
        yield hydra, words


def _needed(schema: Any, prefix: str = "") -> Iterator[str]:
    """Keys that a composed configuration must give, with dots."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.metadata.get("needed"):
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from _needed(hints[field.name], f"{prefix}{field.name}.")


@contextlib.contextmanager
def _searching(config_dir: str | os.PathLike[str] | None) -> Iterator[Hydra]:
    """Hydra with our search path; whatever Hydra an outer program has set up is back afterwards."""
    *own, ours = folders(config_dir)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    version.setbase(None)
    try:
        path = create_config_search_path(f"file://{ours}")
        for folder in own:
            path.prepend(provider="command-line", path=f"file://{folder}", anchor="main")
        yield Hydra.create_main_hydra2(task_name="xdyna", config_search_path=path)
    finally:
        GlobalHydra.instance().hydra = before
