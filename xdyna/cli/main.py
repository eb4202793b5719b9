"""The console command `xdyna`, also `python -m xdyna`: one sub-command per program."""

import sys
from collections.abc import Sequence

import xdyna
from xdyna.core.errors import UsageError
from xdyna.core.program import run

# Modules with a function `main`; imported when their command is called, so that --help is quick.
COMMANDS = {
    "animate": ("xdyna.cli.infer", "animate one image of a person with a driving video"),
    "live": ("xdyna.cli.live", "animate one image of a person with a camera, a file or keypoints as they come"),
    "train": ("xdyna.cli.train", "train one stage"),
    "eval": ("xdyna.cli.eval", "measure generated videos"),
    "preprocess": ("xdyna.cli.preprocess", "make a training set of raw videos, or a cache of one"),
    "convert": ("xdyna.cli.convert", "turn published weights into one pipeline folder"),
    "push": ("xdyna.cli.push", "put a pipeline folder on the Hugging Face hub"),
    "bench": ("xdyna.cli.bench", "measure the speed of sampling, training, training data, metrics"),
    "page": ("xdyna.cli.page", "a page in the browser that animates, and its HTTP API"),
    "doctor": ("xdyna.cli.doctor", "check that everything works here, and say what mends what does not"),
    "demo": ("xdyna.cli.demo", "a first look without any input"),
    "puppets": ("xdyna.cli.puppets", "the rendered world: its report, its evaluation, its small networks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `xdyna COMMAND ...`.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        int: exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        return run(COMMANDS[words[0]][0], words[1:])
    return run(_without_command, words)


def _without_command(words: Sequence[str]) -> int:
    if words and words[0] == "--version":
        print(f"xdyna {xdyna.__version__}")
        return 0
    if words and words[0] not in ("-h", "--help"):
        raise UsageError(f"xdyna {words[0]}: there is no such command; expected one of {', '.join(COMMANDS)}")
    lines = "\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items())
    print(f"usage: xdyna COMMAND ...\n\n{lines}\n\nxdyna COMMAND --help tells more.")
    return 0
