"""Does everything work here? `xdyna doctor`: one line for each check, and the command that mends it."""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from xdyna.cli.arguments import program_name
from xdyna.core.program import FAILURE


def main(argv: Sequence[str]) -> int:
    """Run `xdyna doctor`. Args: argv: without the program's name. Returns: exit code, 1 where a line fails."""
    parser = argparse.ArgumentParser(
        prog=program_name("doctor"),
        description="Check Python, packages, device, codecs, detectors, weights, disk and memory, and make a short "
        "animation. Each line is pass, warn or fail, with the command that mends it. Nothing is changed or kept.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    from xdyna.pipelines.doctor import examine_machine

    lines = []
    for line in examine_machine():
        lines.append(line)
        if not args.json:
            print(f"{line.level:<5} {line.name:<10} {line.text}", flush=True)
            if line.mend:
                print(f"{'':<16} mend: {line.mend}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=1))
    return FAILURE if any(line.level == "fail" for line in lines) else 0
