"""Hostile paths, and lists that name them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, Place, link
from tests.hostile.common import infer

Path_ = Callable[[Place], str]


def _fifo(place: Place) -> str:
    path = place.given / "pipe"
    os.mkfifo(path)
    return str(path)


def _loop(place: Place) -> str:
    return link(place.given / "loop", place.given / "loop")


def _unreadable(place: Place) -> str:
    path = place.put("closed", b"x" * 100)
    os.chmod(path, 0)
    return path


INPUTS: dict[str, Path_] = {
    "a folder": lambda place: str(place.given),
    "a pipe": _fifo,
    "a link to itself": _loop,
    "a broken link": lambda place: link(place.given / "broken", "nowhere"),
    "a link to a folder": lambda place: link(place.given / "folder", place.secret),
    "a link to a pipe": lambda place: link(place.given / "to_pipe", _fifo(place)),
    "/dev/zero": lambda place: "/dev/zero",
    "/dev/null": lambda place: "/dev/null",
    "/dev/stdin": lambda place: "/dev/stdin",
    "/proc/self/mem": lambda place: "/proc/self/mem",
    "/proc/self/environ": lambda place: "/proc/self/environ",
    "nothing": lambda place: "",
    "a dot": lambda place: ".",
    "a zero letter": lambda place: "a\0b.png",
    "a new line": lambda place: "a\nb.png",
    "5,000 letters": lambda place: "x" * 5000,
    "5,000 folders": lambda place: "x/" * 5000,
    "a surrogate": lambda place: "\udcff.png",
    "an option": lambda place: "-rf",
    "a URL": lambda place: "http://127.0.0.1:9/evil.png",
    "a protocol": lambda place: f"concat:{place.secret}/word.txt",
    "a file URL": lambda place: f"file://{place.secret}/word.txt",
    "a pattern": lambda place: f"{place.secret}/*.txt",
    "a home": lambda place: "~/nothing",
    "a variable": lambda place: "$HOME/nothing",
    "a file as a folder": lambda place: str(place.shared / "ref.png" / "x.png"),
    "a way back": lambda place: f"{place.given}/../secret/word.txt",
    "a sound file by a long way": lambda place: f"{place.shared}/../{place.shared.name}/ref.png",
}


def input_case(option: str, name: str, path: Path_) -> Case:
    """A path for an input."""

    def make(place: Place) -> Sequence[str]:
        given = path(place)
        match option:
            case "--ref":
                return infer(place, ref=given)
            case "--drive":
                return infer(place, drive=given)
            case "--checkpoint":
                return infer(place, checkpoint=given)
            case "--generated":
                return [
                    option,
                    given,
                    "--metrics",
                    "psnr",
                    "--out",
                    "report",
                    "--truth",
                    str(place.shared / "poses.mp4"),
                ]
            case "preprocess":
                return [given, "--out", "set", "--workers", "1", "--dry-run"]
        return infer(place, option, given)

    program = {"--generated": "eval", "preprocess": "preprocess"}.get(option, "infer")
    fine = ("sound" in name and option == "--ref") or option == "preprocess"  # whose dry run tells what is no video
    asked = name == "a URL" and option in ("--ref", "--drive", "--ref-keypoints")
    return Case("path", f"{option} {name}", make, program=f"xdyna.cli.{program}", works=fine, fetches=asked)


def _kept(place: Place) -> str:
    (place.out / "kept.mp4").write_bytes(b"a user's own")
    return "kept.mp4"


def _link_out(place: Place) -> str:
    return link(place.out / "to_secret.mp4", place.secret / "word.txt")


def _onto_input(place: Place) -> str:
    return place.put("own.mp4", b"a user's own")


OUTPUTS: dict[str, Path_] = {
    "a folder": lambda place: ".",
    "nothing": lambda place: "",
    "a file that is there": _kept,
    "a link to a file that is there": _link_out,
    "/proc": lambda place: "/proc/x.mp4",
    "a zero letter": lambda place: "a\0b.mp4",
    "300 letters": lambda place: "x" * 300 + ".mp4",
    "a broken link": lambda place: link(place.out / "broken.mp4", "nowhere"),
    "a file as a folder": lambda place: str(place.shared / "ref.png" / "out.mp4"),
    "an input that is there": _onto_input,
    "a device": lambda place: "/dev/null",
    "among devices": lambda place: "/dev/xdyna-hostile.mp4",
    "a pipe": _fifo,
    "a link to a device": lambda place: link(place.given / "to_null", "/dev/null"),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "eval": ("--generated", "SHARED/poses.mp4", "--metrics", "flicker", "--out"),
    "preprocess": ("SHARED", "--workers", "1", "--out"),
    "convert": ("--pipeline", "SHARED/pipeline", "--out"),
}


def output_case(name: str, path: Path_, *, program: str = "infer") -> Case:
    """A path for an output."""

    def make(place: Place) -> Sequence[str]:
        if program == "infer":
            return infer(place, out=path(place))
        return [*(word.replace("SHARED", str(place.shared)) for word in OTHERS[program]), path(place)]

    before = "" if program == "infer" else f"{program} "
    return Case("path", f"{before}--out {name}", make, program=f"xdyna.cli.{program}")


def list_case(name: str, content: Any, *, program: str = "infer", ending: str = "json", works: bool = False) -> Case:
    """A list of files."""

    def make(place: Place) -> Sequence[str]:
        text = content if isinstance(content, str) else json.dumps(content)
        for word, folder in (("SHARED", place.shared), ("SECRETS", place.secret), ("GIVEN", place.given)):
            text = text.replace(word, str(folder))
        path = place.put(f"list.{ending}", text)
        if program == "eval":
            return ["--pairs", path, "--metrics", "psnr", "--out", "report"]
        if program == "generate":
            return ["--generate", path, "--infer", f"--checkpoint {place.shared}/pipeline --steps 1 frames=2 guidance=1",
                    "--metrics", "flicker", "--out", "report"]  # fmt: skip
        if program == "preprocess":
            return ["--from", path, "--out", "set", "--workers", "1"]
        return ["--batch", path, "--checkpoint", str(place.shared / "pipeline"), "--steps=1", "frames=2"]

    cli = {"generate": "eval"}.get(program, program)
    return Case("path", f"list for {program}, {name}", make, program=f"xdyna.cli.{cli}", works=works)


PAIR = {"ref": "SHARED/ref.png", "drive": "SHARED/drive.npz"}
LISTS: dict[str, Any] = {
    "nested": "[" * 100_000,
    "empty": "",
    "numbers": [1, 2],
    "text": "hello",
    "null": "null",
    "a big number": "9" * 100_000,
    "unknown key": [{**PAIR, "exec": "touch x"}],
    "ref a number": [{**PAIR, "ref": 7}],
    "ref a list": [{**PAIR, "ref": ["a"]}],
    "ref with zero letters": [{**PAIR, "ref": "a\0b"}],
    "ref of 5,000 letters": [{**PAIR, "ref": "x" * 5000}],
    "ref nowhere": [{**PAIR, "ref": "/nowhere.png"}],
    "drive a folder": [{**PAIR, "drive": "GIVEN"}],
    "drive a secret": [{**PAIR, "drive": "SECRETS/word.txt"}],
    "out twice": [{**PAIR, "out": "a.mp4"}, {**PAIR, "out": "b/../a.mp4"}],
    "out with zero letters": [{**PAIR, "out": "a\0b.mp4"}],
    "out a number": [{**PAIR, "out": 7}],
}
IDS = [
    "../../secret/made",
    "/tmp/xdyna-hostile-made",
    "a\0b",
    "x" * 300,
    "..",
    ".",
    "a/b",
    "",
    "-rf",
    "a\nb",
    "con",
    "~",
]
ROWS = ["generated\n", "generated,truth\n../secret/word.txt,x\n", "evil\nx\n", "generated,truth\nGIVEN,GIVEN\n", "\0\0\0",
        "generated,truth\nSHARED/ref.png,SHARED/ref.png\n", "generated,truth\nSHARED/poses.mp4,SECRETS/word.txt\n", ""]  # fmt: skip


def many(place: Place) -> str:
    """A folder in a folder in a folder, which comes back to itself."""
    folder = place.given / "deep"
    folder.mkdir()
    shutil.copy(place.shared / "poses.mp4", folder / "a.mp4")
    link(folder / "again", folder)
    return str(folder)


def cases() -> Iterator[Case]:
    """All of them."""
    for option in ("--ref", "--drive", "--checkpoint", "--generated", "preprocess", "--ref-keypoints"):
        for name, path in INPUTS.items():
            if not (option == "preprocess" and "dev" in name):
                yield input_case(option, name, path)
    for name, path in OUTPUTS.items():
        yield output_case(name, path)
        for program in OTHERS if "device" in name or "pipe" in name or name == "a file as a folder" else ():
            yield output_case(name, path, program=program)
    for name, content in LISTS.items():
        yield list_case(name, content)
    for number, text in enumerate(ROWS):
        yield list_case(f"rows {number}", text, program="eval", ending="csv")
    for number, text in enumerate(
        ("[" * 100_000, "{}", '{"generated": 7}', '{"generated": {"a": 1}}', "null", "9" * 100_000)
    ):
        yield list_case(f"lines {number}", text, program="eval", ending="jsonl")
    for name in IDS:
        yield list_case(f"id {name[:20]!r}", [{**PAIR, "id": name}], program="generate", works=True)
    yield Case("path", "a folder that holds itself", lambda place: ["--generated", many(place), "--truth", many_again(place),
               "--metrics", "psnr", "--out", "report"], program="xdyna.cli.eval", works=True)  # fmt: skip


def many_again(place: Place) -> str:
    """The same folder."""
    return str(Path(place.given / "deep"))
