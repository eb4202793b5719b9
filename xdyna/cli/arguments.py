"""The command line of all programs: settings in Hydra's grammar, flags made from the schema, Hydra's own options.

`steps=10` and `--steps 10` are the same; of several, the last one wins. Files and actions are flags of each program.
"""

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from xdyna.cli import multirun
from xdyna.config.settings import allowed, descriptions
from xdyna.core.errors import UsageError

Schema = TypeVar("Schema")

CFG_KINDS = ("job", "hydra", "all")
_OVERRIDE = re.compile(r"(\+\+?)?[A-Za-z_][\w.\-/@:]*=|~[A-Za-z_]")


@dataclasses.dataclass(frozen=True)
class Command(Generic[Schema]):
    """What a command line asks for.

    Attributes:
        config: the settings.
        tree: the same as plain dictionaries.
        flags: files and actions.
        argv: the words themselves, for manifests.
    """

    config: Schema
    tree: dict[str, Any]
    flags: argparse.Namespace
    argv: list[str]


@dataclasses.dataclass(frozen=True)
class Program(Generic[Schema]):
    """A program.

    Attributes:
        name: sub-command of `xdyna`.
        root: of its configuration: configs/ROOT.yaml.
        schema: of its settings.
        description: for --help.
        example: for --help.
        inputs: whether words that are no settings are inputs; else they are mistakes.
        lists: keys with a list of values that have a flag, too.
    """

    name: str
    root: str
    schema: type[Schema]
    description: str
    example: str = ""
    inputs: bool = False
    lists: tuple[str, ...] = ()

    def parser(self) -> argparse.ArgumentParser:
        """A parser with the settings and Hydra's options; the program adds its files and actions."""
        p = argparse.ArgumentParser(
            prog=program_name(self.name),
            description=self.description,
            epilog=f"example: {self.example}" if self.example else None,
            usage=f"%(prog)s [options] [key=value ...]{' INPUT ...' if self.inputs else ''}",
            allow_abbrev=False,
        )
        p.set_defaults(overrides=[])
        p.register("action", "override", _Override)
        _add_hydra(p, guidance="guidance" in self.schema.__dataclass_fields__)  # type: ignore[attr-defined]
        _add_settings(p, self.schema, self.lists)
        p.add_argument("--debug", action="store_true", help="show tracebacks")
        return p

    def main(
        self,
        parser: argparse.ArgumentParser,
        argv: Sequence[str],
        work: Callable[[Command[Schema]], int],
        *,
        prepare: Callable[[argparse.Namespace], None] | None = None,
        placeholders: Callable[[argparse.Namespace], Mapping[str, Any] | None] | None = None,
        numbered: Callable[[Command[Schema], int], list[str]] | None = None,
    ) -> int:
        """Do what a command line asks for.

        Args:
            parser: from `parser`, with the program's own flags.
            argv: without the program's name.
            work: the program: takes the command, returns the exit code.
            prepare: may change the parsed flags and their `overrides` before the settings are composed.
            placeholders: of values that need not be given with these flags, by dotted key.
            numbered: words that give job number k of a --multirun an output of its own.

        Returns:
            Exit code.

        Raises:
            UsageError: a wrong setting.
        """
        flags = self.parse(parser, argv)
        from xdyna.config import loader  # Hydra is not needed to show the help

        try:
            if flags.multirun:
                multirun.refuse_several_processes()
            if prepare is not None:
                prepare(flags)
            if flags.cfg is not None:
                loader.show(
                    self.schema,
                    self.root,
                    flags.overrides,
                    kind=flags.cfg,
                    config_dir=flags.config_dir,
                    package=flags.package,
                    resolve=flags.resolve,
                )
                return 0

            def command(overrides: Sequence[str]) -> Command[Schema]:
                composed = loader.compose(
                    self.schema,
                    self.root,
                    overrides,
                    config_dir=flags.config_dir,
                    placeholders=placeholders(flags) if placeholders else None,
                )
                return Command(composed.config, composed.tree, flags, list(argv))

            if flags.multirun:
                jobs = loader.sweep(self.schema, self.root, flags.overrides, config_dir=flags.config_dir)
                return multirun.run(
                    self.name, jobs, [command(job) for job in jobs], kept_words(parser, argv), numbered=numbered
                )
            asked = command(flags.overrides)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return work(asked)

    def parse(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed flags; `overrides` are the settings in the order in which they were given.

        Args:
            parser: from `parser`, with the program's own flags.
            argv: without the program's name.
        """
        words = _split(parser, argv, self.inputs)
        flags = parser.parse_intermixed_args([f"--override={word}" if setting else word for word, setting in words])
        flags.overrides = [word for _, word in flags.overrides]
        return flags


def kept_words(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The flags of a command line: neither settings in Hydra's grammar nor --multirun.

    Args:
        parser: of the program.
        argv: without the program's name.
    """
    words = [word for word, is_setting in _split(parser, argv, inputs=True) if not is_setting]
    return [word for word in words if word not in ("--multirun", "-m")]


def _split(parser: argparse.ArgumentParser, argv: Sequence[str], inputs: bool) -> list[tuple[str, bool]]:
    """Every word, and whether it is a setting in Hydra's grammar: not a flag, nor a value of the flag before it."""
    options, words = parser._option_string_actions, []
    fixed, more = 0, False
    for word in argv:
        name, equals, _ = word.partition("=")
        if name in options:
            nargs = 0 if equals else 1 if options[name].nargs is None else options[name].nargs
            fixed, more = (nargs, False) if isinstance(nargs, int) else (int(nargs == "+"), True)
            words.append((word, False))
        elif fixed > 0:
            fixed -= 1
            words.append((word, False))
        elif _OVERRIDE.match(word) and not (inputs and Path(word).exists()):
            more = False
            words.append((word, True))
        else:
            words.append((word, not (inputs or more or word.startswith("-"))))
    return words


def program_name(command: str) -> str:
    """What the user has typed: a script of scripts/, or `xdyna COMMAND`. Args: command: its name."""
    started = Path(sys.argv[0])
    return started.name if started.parent.name == "scripts" and started.suffix == ".py" else f"xdyna {command}"


class _Setting(argparse.Action):
    """A flag that stands for a setting: `--steps 10` is `steps=10`."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, text: bool = False, **options: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **options)
        self.text = text

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = list(namespace.overrides)
        if isinstance(self.nargs, int) and self.nargs == 0:
            values = "false" if (option or "").startswith("--no-") else "true"
            if self.const is not None:
                values = self.const
        elif isinstance(values, list):  # a flag that is given again adds to its list
            old = [word for key, word in before if key == self.dest]
            inside = [old[-1].partition("=")[2].strip("[]")] if old else []
            before = [entry for entry in before if entry[0] != self.dest]
            values = f"[{','.join([*inside, *(quoted(str(value)) for value in values)])}]"
        elif self.text or not re.fullmatch(r"[\w.+-]+", str(values)):
            values = quoted(str(values))
        namespace.overrides = [*before, (self.dest, f"{self.dest}={values}")]


class _Override(argparse.Action):
    """`--set key=value`, and every word that is one by itself."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.overrides = [*namespace.overrides, ("", str(values))]


class _Cfg(argparse.Action):
    """`--cfg job|hydra|all` is Hydra's; `--cfg NUMBER` is the guidance scale."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values in CFG_KINDS:
            namespace.cfg = values
        elif self.const and re.fullmatch(r"[-+.\w]+", values):
            namespace.overrides = [*namespace.overrides, ("guidance", f"guidance={values}")]
        else:
            number = ", or a number, the guidance scale" if self.const else ""
            raise UsageError(f"--cfg {values}: expected {', '.join(CFG_KINDS)}{number}")


class _NoConfig(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        raise UsageError(
            f"--config {values}: there is no such option any more; choose a config by its group (preset=NAME, "
            "experiment=NAME, metrics=NAME), and give a folder with files of your own by --config-dir FOLDER"
        )


def _add_hydra(p: argparse.ArgumentParser, *, guidance: bool) -> None:
    hydra = p.add_argument_group("configuration (Hydra)")
    hydra.add_argument("--override", dest="overrides", action=_Override, default=[], help=argparse.SUPPRESS)
    kinds = "|".join(CFG_KINDS)
    hydra.add_argument(
        "--cfg",
        action=_Cfg,
        const=guidance,
        default=None,
        metavar=f"{kinds}|NUMBER" if guidance else kinds,
        help="print the composed configuration and stop" + ("; a number is the guidance scale" if guidance else ""),
    )
    hydra.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only this part")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: put the values of interpolations in")
    hydra.add_argument(
        "--multirun", "-m", action="store_true", help="one job for each combination of KEY=1,2 OTHER=range(2,5)"
    )
    hydra.add_argument("--config-dir", metavar="DIR", help="configs of your own, laid out like configs/, found first")
    hydra.add_argument("--config", action=_NoConfig, help=argparse.SUPPRESS)


def _add_settings(p: argparse.ArgumentParser, schema: type[Any], lists: Sequence[str]) -> None:
    """A flag for every scalar key, and for those lists."""
    group = p.add_argument_group("settings", "each is also key=value: --some-key 8 is some_key=8")
    hints, told = typing.get_type_hints(schema), descriptions(schema)
    for field in dataclasses.fields(schema):
        kind, name = _scalar(hints[field.name]), field.name.replace("_", "-")
        if kind is None and field.name not in lists:
            continue
        limits = "" if field.metadata.get("choices") else allowed(field)
        text = "; ".join(part for part in (told.get(field.name, "").rstrip("."), limits) if part)
        if field.default not in (None, dataclasses.MISSING, ""):
            text += f" (default: {str(field.default).lower() if kind is bool else field.default})"
        options: dict[str, Any] = {"dest": field.name, "help": text.replace("%", "%%"), "action": _Setting}
        bare = field.metadata.get("bare")
        if kind is bool:
            group.add_argument(f"--{name}", f"--no-{name}", nargs=0, **options)
        elif field.name in lists:
            group.add_argument(f"--{name}", nargs="+", metavar="X", **options)
        elif bare is not None:
            metavar = "|".join(field.metadata["choices"])
            group.add_argument(f"--{name}", nargs="?", const=bare, metavar=metavar, **options)
            options["help"] = f"as --{name} {field.default}"
            group.add_argument(f"--no-{name}", nargs=0, const=field.default, **options)
        else:
            choices = field.metadata.get("choices")
            metavar = "|".join(choices) if choices else {int: "N", float: "X"}.get(typing.cast(Any, kind), "TEXT")
            group.add_argument(f"--{name}", metavar=metavar, text=kind is str and not choices, **options)


def _scalar(kind: Any) -> type | None:
    """bool, int, float or str, where a value (or none) of that kind is wanted."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(kind) if each is not type(None)]
        kind = kinds[0] if len(kinds) == 1 else None
    return kind if kind in (bool, int, float, str) else None


def quoted(text: str) -> str:
    """Text as a value in Hydra's grammar that means exactly this text. Args: text: anything."""
    plain = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)  # no interpolation
    plain = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", plain)
    plain = re.sub(r"(\\+)\Z", lambda found: found[1] * 2, plain)
    return f"'{plain}'"
