"""Published files -> one pipeline folder: `scripts/convert.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from xdyna.cli.arguments import Command, Program
from xdyna.config.convert import PARTS, ConvertConfig
from xdyna.core.atomic import output_path
from xdyna.core.errors import UsageError

PROGRAM = Program(
    name="convert",
    root="convert",
    schema=ConvertConfig,
    description="Turn the published X-Dyna files into one folder that infer.py loads. model=NAME takes the "
    "sizes of the networks from configs/model.",
    example="xdyna convert --official downloads --dtype float16",
)


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = PROGRAM.parser()
    p.add_argument("--official", type=Path, metavar="DIR", help="folder that holds the published files, searched below")
    p.add_argument(
        "--download",
        action="store_true",
        help="first fetch what is missing there (about 12 GB; with --initial about 10 GB)",
    )
    for part in PARTS:
        optional = "" if part.required else ", optional"
        p.add_argument("--" + part.option.replace("_", "-"), type=Path, metavar="PATH", help=part.what + optional)
    p.add_argument(
        "--out", type=output_path, metavar="DIR", help="pipeline folder to write (default: below pretrained/)"
    )
    p.add_argument(
        "--initial",
        action="store_true",
        help="write the initialisation that training starts from (SD1.5, AnimateDiff, IP-Adapter, ControlNet openpose)",
    )
    p.add_argument(
        "--pipeline", type=Path, metavar="DIR", help="rewrite this pipeline folder (of a training) as --dtype"
    )
    p.add_argument("--model", metavar="NAME", help="as model=NAME; also a YAML file with the sizes of the networks")
    p.add_argument("--tiny", action="store_true", help="write an untrained tiny pipeline instead (no files needed)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `scripts/convert.py`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(parser(), argv, work, prepare=_choose_model, numbered=_numbered)


def _numbered(command: Command[ConvertConfig], number: int) -> list[str]:
    return ["--out", str((command.flags.out or Path("outputs") / "convert") / str(number))]


def _choose_model(flags: argparse.Namespace) -> None:
    """--model as a setting: a config of the group, or a YAML file."""
    chosen = flags.model
    if chosen is None:
        return
    from xdyna.config import loader

    if chosen.endswith((".yaml", ".yml")):
        loader.store_group("model", "file", {"model": loader.read_yaml(Path(chosen))})
        chosen = "file"
    flags.overrides.insert(0, f"model={chosen}")


def work(command: Command[ConvertConfig]) -> int:
    """Write a pipeline folder. Args: command: what is asked for. Returns: exit code."""
    import torch

    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines import convert as library
    from xdyna.pipelines.folder import OFFICIAL, named_folder, save_pipeline
    from xdyna.pipelines.untrained import build_untrained

    args, config = command.flags, command.config
    quiet_libraries()
    out = args.out or (library.INITIAL if args.initial else OFFICIAL)
    dtype = getattr(torch, config.dtype)
    if out.exists():
        raise UsageError(f"--out {out} exists already; remove it or choose another folder")
    if args.tiny:
        build_untrained(out, seed=config.seed)
        print(f"wrote {out} (untrained weights)")
        return 0
    if args.pipeline is not None:
        library.repack(named_folder(args.pipeline), out, dtype=dtype)
    else:
        official = args.official
        if args.download:
            official = official or library.DOWNLOADS
            library.download(official, use="train" if args.initial else "animate")
        given = {part.option: getattr(args, part.option) for part in PARTS}
        sources = library.find_sources(official, given, use="initial" if args.initial else "published")
        pipeline = library.convert(sources, config.model, progress=True)
        pipeline.to(dtype)
        save_pipeline(pipeline, out)
    print(f"wrote {out}")
    return 0
