"""The folder of a run: made once, and only ever continued with the same configuration."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from xdyna.config.train import TrainConfig
from xdyna.core.atomic import write_file
from xdyna.core.manifest import versions
from xdyna.training.errors import RunError

CONFIG, MANIFEST = "config.yaml", "run.json"
FORMAT = 3  # of the folder's contents, checkpoints included; runs of another one are not continued
_ABSENT = "(absent)"
# Settings that a resumed run may change: they do not alter what is computed at a given step.
FREE_TO_CHANGE = (
    "save_every",
    "keep",
    "log_every",
    "tracker",
    "validation",
    "out",
    "on_nan",
    "spike",
    "checkpointing",
)
FREE_TO_CHANGE_DATA = ("data.workers", "data.prefetch")
# Settings that even --change leaves: which parameters a checkpoint holds follows from them.
FIXED = ("stage", "appearance", "face", "train", "lora_rank", "init", "model", "optim.name", "replay")


def start_run(
    config: TrainConfig, about: dict[str, Any], *, resume: bool, change: Collection[str] = ()
) -> Callable[[], None]:
    """See that a run may begin or go on in its folder, `config.out`.

    Args:
        config: of the run.
        about: of this start, for the manifest.
        resume: go on with the run in the folder.
        change: settings, or sections of them, that this start changes on purpose.

    Returns:
        What writes this start down; called when nothing can refuse it any more.

    Raises:
        RunError: see `prepare_run_dir`; or a setting that cannot be changed.
    """
    if fixed := [key for key in change if any(_allowed(key, [name]) or _allowed(name, [key]) for name in FIXED)]:
        raise RunError(
            f"--change {fixed[0]}: the checkpoint's parameters follow from it; start a run of its own from this one's "
            f"weights (init={config.out}/final, or an --export of it)"
        )
    path = Path(config.out)
    may_differ = (*paths_free_to_change(config), *_newer(path, config), *change)
    manifest = {"versions": versions(), **about}
    return prepare_run_dir(path, dataclasses.asdict(config), manifest=manifest, resume=resume, may_differ=may_differ)


def paths_free_to_change(config: TrainConfig) -> tuple[str, ...]:
    """Settings that a resumed run may change, as dotted keys."""
    longer = ("max_steps",) if config.optim.schedule == "constant" else ()  # a cosine depends on its end
    smaller = () if config.replay.clips else ("micro_batch",)  # what is replayed are a process's own clips
    return (*FREE_TO_CHANGE, *FREE_TO_CHANGE_DATA, *longer, *smaller)


def _newer(run_dir: Path, config: TrainConfig) -> list[str]:
    """Settings that did not exist when the run was started, and stand at what was done then: their defaults."""
    try:
        there = yaml.safe_load((run_dir / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # no run yet, or one that is refused with a better message
        return []

    def absent(given: Any, known: Any, default: Any, name: str) -> Iterator[str]:
        for key, value in given.items():
            if key not in known:
                yield from [f"{name}{key}"] if value == default.get(key) else []
            elif isinstance(value, dict) and isinstance(known[key], dict):
                yield from absent(value, known[key], default.get(key) or {}, f"{name}{key}.")

    if not isinstance(there, dict):
        return []
    return list(absent(dataclasses.asdict(config), there, dataclasses.asdict(TrainConfig()), ""))


def prepare_run_dir(
    path: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    may_differ: Collection[str] = (),
    manifest: dict[str, Any] | None = None,
) -> Callable[[], None]:
    """Make the folder of a new run, or check that a run may be continued in it.

    `config.yaml` is the configuration; `run.json` has one entry per start: `manifest`, and what was changed since the
    start before. Resuming where there is nothing yet starts the run, so that one command serves for all its slices.

    Args:
        path: the folder.
        config: nested dict of plain values (paths and tuples are written as texts and lists).
        resume: whether to go on with the run in the folder.
        may_differ: keys that resuming may change, dotted ("train.max_steps"); a section's name stands for all in it.
        manifest: versions, command and so on of this start.

    Returns:
        What writes both files, so that a start that is refused later leaves the run as it was.

    Raises:
        RunError: not resuming into a folder that is not empty; resuming in one of another configuration (the message
            lists the keys) or of no run; or it cannot be written to.
    """
    new = _plain(config, "config")
    starts: list[dict[str, Any]] = []
    changed: dict[str, list[Any]] = {}
    try:
        if path.exists() and not path.is_dir():
            raise RunError(f"run folder {path} is a file; give a folder")
        occupied = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
        if occupied and not resume:
            raise RunError(
                f"run folder {path} is not empty; go on with the run in it (resume), or choose another folder"
            )
        if occupied:
            old, starts = _read(path)
            changed = _changes(old, new)
            if wrong := [key for key in changed if not _allowed(key, may_differ)]:
                listed = "; ".join(f"{key}: {changed[key][0]} there, {changed[key][1]} now" for key in wrong)
                raise RunError(
                    f"run folder {path} has another configuration ({listed}). Resume with the same one, start a new "
                    f"run in another folder{_on_purpose(wrong, changed)}. "
                    f"What may change without: {', '.join(sorted(may_differ)) or 'nothing'}"
                )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error

    def write() -> None:
        record = {
            "format": FORMAT,
            "starts": [*starts, {**(manifest or {}), **({"changed": changed} if changed else {})}],
        }
        try:
            write_file(path / CONFIG, yaml.safe_dump(new, sort_keys=False, allow_unicode=True).encode())
            write_file(path / MANIFEST, (json.dumps(record, indent=1, default=str) + "\n").encode())
        except OSError as error:
            raise _not_writable(path, error) from error

    return write


def _not_writable(path: Path, error: OSError) -> RunError:
    return RunError(f"run folder {path} cannot be written ({error}); choose one that you may write to")


def _on_purpose(wrong: Sequence[str], changed: dict[str, list[Any]]) -> str:
    """The words that allow the first change that can be allowed, in Hydra's grammar; nothing where there is none."""
    for key in wrong:
        value = changed[key][1]
        if value != _ABSENT and not any(_allowed(key, [name]) for name in FIXED):
            text = json.dumps(value, separators=(",", ":"))
            return f", or change it on purpose with --change {shlex.quote(f'{key}={text}')}"
    return ""


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    advice = "choose the folder of a run to resume, or an empty one"
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is no run folder: it holds files, but no {CONFIG}; {advice}")
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path / CONFIG} is damaged ({str(error).splitlines()[0]}); {advice}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path / CONFIG} holds a {type(config).__name__}, expected keys and values; {advice}")
    if not (path / MANIFEST).is_file():  # the first start ended between the two files
        return config, []
    try:
        record = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        starts, version = list(record["starts"]), record.get("format", 1)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / MANIFEST} is damaged ({error}); remove it to go on without its record") from error
    if version != FORMAT:
        raise RunError(
            f"{path} holds a run of format {version}, begun by another version of xdyna, and this one continues format "
            f"{FORMAT}; finish it with the version that began it, or start again in another folder"
        )
    return config, starts


def _plain(value: Any, where: str) -> Any:
    """A copy that YAML writes and reads back the same."""
    if isinstance(value, dict):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise RunError(f"{where} is a {type(value).__name__}; expected None, bool, int, float, str, dict, list or path")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):  # an empty one says nothing
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    before, after = _flat(old), _flat(new)
    return {
        key: [before.get(key, _ABSENT), after.get(key, _ABSENT)]
        for key in {**before, **after}
        if key not in before or key not in after or not _same(before[key], after[key])
    }


def _same(one: Any, other: Any) -> bool:
    # NaN equals itself here; True is not 1, and 1 equals 1.0.
    return repr(one) == repr(other) or (one == other and isinstance(one, bool) == isinstance(other, bool))


def _allowed(key: str, may_differ: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in may_differ)
