"""The rendered world: `scripts/puppets.py ACTION`; the actions are listed below."""

import importlib
from collections.abc import Sequence

from xdyna.core.errors import UsageError

# Modules with a function `main`; imported when their action is called.
ACTIONS = {
    "report": ("xdyna.puppets.report", "measure a small model on held-out clips: its card, docs/eval_tiny.md, sheets"),
    "alignment": ("xdyna.puppets.alignment_report", "measure alignment on puppets whose right joints are known"),
    "few-steps": ("xdyna.puppets.few_steps", "measure a distilled model beside the undistilled one, step for step"),
    "faces": ("xdyna.puppets.faces", "show cross-identity faces of rendered figures, beside real ones"),
    "long": ("xdyna.puppets.long", "measure a long video over time: drift, seams, flicker of the schedules of windows"),
    "sensitivity": ("xdyna.puppets.sensitivity", "show how metrics react to known damage of clips"),
    "train-extractors": ("xdyna.puppets.train_extractors", "train the networks that metrics look through"),
    "train-segmenter": ("xdyna.puppets.train_segmenter", "train the network that tells puppets from the scene"),
    "train-reader": ("xdyna.puppets.train_reader", "train the network that reads mouth and eye opening"),
}


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py`. Args: argv: without the program's name. Returns: exit code."""
    if argv and argv[0] in ACTIONS:
        return int(importlib.import_module(ACTIONS[argv[0]][0]).main(argv[1:]))
    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError(f"puppets {argv[0]}: there is no such action; expected one of {', '.join(ACTIONS)}")
    lines = "\n".join(f"  {name:<18}{what}" for name, (_, what) in ACTIONS.items())
    print(f"usage: xdyna puppets ACTION ...\n\n{lines}\n\nxdyna puppets ACTION --help tells more.")
    return 0
