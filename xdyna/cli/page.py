"""The page in a browser: `xdyna page`. Parses, calls `xdyna.page.server`, and ends with Ctrl-C or SIGTERM."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from xdyna.cli.arguments import Command, Program
from xdyna.config.page import PageConfig

PROGRAM = Program(
    name="page",
    root="page",
    schema=PageConfig,
    description="Serve a page on which one animates an image with a video, or moves a puppet live. For this computer "
    "alone, unless --host says otherwise. Needs the extra `demo`.",
    example="xdyna page --port 8000 --auth me:secret",
    lists=("live_lora",),
)


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = PROGRAM.parser()
    group = p.add_argument_group("who and what")
    group.add_argument(
        "--auth", metavar="USER:PASSWORD|FILE", help="who may come in; a file has one such line for each user"
    )
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="pipeline folder, or the name of a shipped one")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `xdyna page`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(parser(), argv, work)


def work(command: Command[PageConfig]) -> int:
    """Serve until somebody stops it. Args: command: what is asked for. Returns: exit code."""
    from xdyna.core.quiet import quiet_libraries
    from xdyna.core.stop import StopSignal
    from xdyna.page.server import read_auth, serve

    flags = command.flags
    auth = read_auth(flags.auth)
    quiet_libraries()
    with StopSignal() as stop:
        serve(
            command.config,
            checkpoint=flags.checkpoint,
            auth=auth,
            stopped=lambda: stop.requested,
            say=lambda text: print(text, flush=True),
            debug=flags.debug,
        )
    return 0
