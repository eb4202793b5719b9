"""The runner of the documents' commands: what it adds to them, and that it sees failures."""

import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.docs import run as runner
from tests.docs.blocks import ROOT, Block, Directive


class Here:
    """A sandbox that runs commands in a folder, and prepares nothing."""

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def provide(self, text: str) -> None:
        (self.folder / "provided.txt").write_text(text)

    @contextmanager
    def prepared(self, names: tuple[str, ...], command: str):
        yield command, " ".join(names), {}

    def run(self, command: str, **more: str) -> tuple[int, str]:
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("xdyna animate --ref me.jpg", "xdyna animate --ref me.jpg -n 1"),
        ("cat a | xdyna live --drive - ", "cat a | xdyna live --drive - -n 1"),
        ("xdyna live --out - | ffplay -", "xdyna live --out - -n 1 | ffplay -"),
        ("make demo", "make demo 'ARGS= -n 1'"),
        ('make demo ARGS="--frames 32"', "make demo 'ARGS=--frames 32 -n 1'"),
        ("accelerate launch scripts/train.py a=1", "accelerate launch scripts/train.py a=1 -n 1"),
    ],
)
def test_arguments_go_to_the_program(command: str, expected: str) -> None:
    assert runner.with_words(command, "-n 1") == expected
    assert runner.with_words(command, "") == command


@pytest.mark.parametrize(
    ("language", "code", "directive", "expected"),
    [
        ("bash", "true", Directive("run"), "ok"),
        ("bash", "echo", Directive("run", "a b", ("c",)), "ok"),
        ("bash", "false", Directive("run"), "failed (exit code 1)"),
        ("bash", "test", Directive("dry-run"), "dry"),
        ("bash", "false", Directive("skip", "needs a camera"), "skipped: needs a camera"),
        ("python", "print('it''s')\n", Directive("run"), "ok"),
        ("python", "raise SystemExit(3)\n", Directive("run"), "failed (exit code 3)"),
        ("yaml", "a: 1\n", Directive("write", "b/c.yaml"), "ok: written to b/c.yaml"),
    ],
)
def test_outcomes(tmp_path: Path, language: str, code: str, directive: Directive, expected: str) -> None:
    block = Block("x.md", 1, language, code, (directive,))
    outcome, out = runner.run_job(block, code.strip() if language == "bash" else code, directive, Here(tmp_path))
    assert outcome == expected
    if directive.needs:
        assert out == "c a b\n"
    if directive.kind == "write":
        assert (tmp_path / "b" / "c.yaml").read_text() == "a: 1\n"
        assert (tmp_path / "provided.txt").read_text() == "a: 1\n"


def test_a_failure_is_told_and_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        Block("README.md", 3, "bash", "echo fine\n", (Directive("run"),)),
        Block("README.md", 9, "bash", "echo why; false\n", (Directive("run"),)),
        Block("README.md", 12, "bash", "x\n", (Directive("skip", "needs a GPU"),)),
    ]
    monkeypatch.setattr(runner, "Sandbox", Here)
    monkeypatch.setattr(runner, "blocks", lambda page: made)
    assert runner.main(["README.md"]) == 1
    out = capsys.readouterr().out
    assert "README.md:3: ok" in out
    assert "README.md:9: failed (exit code 1)" in out
    assert "    why" in out
    assert "README.md:12: skipped: needs a GPU" in out
    assert out.endswith("1 failed, 1 ok, 1 skipped\n")
    made.pop(1)
    assert runner.main(["README.md"]) == 0
    with pytest.raises(SystemExit):
        runner.main(["nowhere.md"])


def test_a_preparation_that_breaks_is_a_failed_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it raises: the blocks behind it are still run."""

    class Breaks(Here):
        @contextmanager
        def prepared(self, names: tuple[str, ...], command: str):
            if names:
                raise AttributeError("no such thing")
            yield command, "", {}

    made = [
        Block("README.md", 3, "bash", "echo\n", (Directive("run", "", ("hub",)),)),
        Block("README.md", 9, "bash", "echo\n", (Directive("run"),)),
    ]
    monkeypatch.setattr(runner, "Sandbox", Breaks)
    monkeypatch.setattr(runner, "blocks", lambda page: made)
    assert runner.main(["README.md"]) == 1
    told = capsys.readouterr().out
    assert "AttributeError: no such thing" in told
    assert told.splitlines()[-1] == "1 failed, 1 ok"


def test_the_stand_in_of_the_hub_has_every_registered_file(tmp_path: Path) -> None:
    from tests.docs.sandbox import Sandbox

    table = yaml.safe_load((ROOT / "pretrained" / "registry.yaml").read_text())
    hub = Sandbox(tmp_path / "copy", tmp_path / "store").hub()
    wanted = [
        hub / group["repo"] / file["path"]
        for group in table["repositories"]
        if "base" not in group
        for file in group["files"]
        if file.get("uses")
    ]
    assert len(wanted) > 15
    assert not [path for path in wanted if not path.is_file()]
    assert (hub.parent / "model.yaml").is_file()
    assert not [path for path in hub.parent.iterdir() if path.suffix == ".part"]
