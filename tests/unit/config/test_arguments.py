"""xdyna.cli.arguments: flags made from the schema, settings anywhere among them, Hydra's own options."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from xdyna.cli import main, multirun
from xdyna.cli.arguments import Command, Program
from xdyna.cli.infer import PROGRAM, numbered, parser, prepare
from xdyna.config.infer import InferConfig
from xdyna.config.preprocess import PreprocessConfig
from xdyna.config.settings import descriptions
from xdyna.core.errors import UsageError


def asked(*words: str, program: Program[Any] = PROGRAM, own: Any = parser) -> Command[Any]:
    """The command that a line asks for."""
    commands: list[Command[Any]] = []

    def work(command: Command[Any]) -> int:
        commands.append(command)
        return 0

    assert program.main(own(), list(words), work, prepare=prepare if program is PROGRAM else None) == 0
    return commands[0]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--steps", "10"], {"steps": 10}),
        (["steps=10"], {"steps": 10}),
        (["--steps", "10", "steps=12"], {"steps": 12}),
        (["steps=12", "--steps", "10"], {"steps": 10}),
        (["steps=12", "--ref", "a=b.png", "seed=3", "--overwrite", "fps=8"], {"steps": 12, "seed": 3, "fps": 8.0}),
        (["--no-keep-audio"], {"keep_audio": False}),
        (["--no-audio"], {"keep_audio": False}),
        (["--audio"], {}),
        (["--person", "1", "--max-gap", "3"], {"person": 1, "max_gap": 3}),
        (["--face", "--smooth"], {"face": True, "smooth": True}),
        (["--no-face"], {"face": False}),
        (["--cfg", "3.5"], {"guidance": 3.5}),
        (["--guidance=2"], {"guidance": 2.0}),
        (["--size", "64x32"], {"height": 64, "width": 32}),
        (["--align"], {"align": "auto"}),
        (["--align", "steps=3"], {"align": "auto", "steps": 3}),
        (["--align", "none"], {}),
        (["align=global", "--no-align"], {}),
        (["--fps", "null"], {}),
        (["--prompt", "null"], {"prompt": "null"}),
        (["--prompt", "it's, (a) \\ ${x}"], {"prompt": "it's, (a) \\ ${x}"}),
        (["--prompt", ""], {}),
        (["--lora", "a.safetensors:0.5", "--lora", "b c.bin"], {"lora": ["a.safetensors:0.5", "b c.bin"]}),
        (
            ["preset=preview", "--stride", "2"],
            {"height": 448, "width": 256, "steps": 6, "guidance": 3.5, "frames": 32, "stride": 2}
            | {"scheduler": "dpmsolver++", "guidance_interval": [0.2, 0.9], "decoder": "auto"},
        ),
        (["--guidance-interval", "0.3", "0.7"], {"guidance_interval": [0.3, 0.7]}),
        (["--device", "cuda:1", "--dtype", "bfloat16"], {"device": "cuda:1", "dtype": "bfloat16"}),
    ],
)
def test_flags_and_settings_are_the_same(words: list[str], changes: dict[str, Any]) -> None:
    assert asked(*words).config == InferConfig(**changes)


def test_every_scalar_setting_is_a_flag_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, told in descriptions(InferConfig).items():
        assert f"--{name.replace('_', '-')}" in text
        assert told.split(";")[0].split(" (")[0].rstrip(".") in text
    assert "published: 25); 1 to 1000" in text


def test_files_that_look_like_settings_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kind=of").mkdir()
    program = Program("preprocess", "preprocess", PreprocessConfig, "", inputs=True)

    def own() -> argparse.ArgumentParser:
        p = program.parser()
        p.add_argument("inputs", nargs="*")
        p.add_argument("--set", dest="overrides", action="override")
        p.add_argument("--inspect", nargs=2)
        return p

    words = [
        "a.mp4",
        "kind=human",
        "--inspect",
        "x=1",
        "y=2",
        "kind=of",
        "--workers",
        "2",
        "b.mp4",
        "--set",
        "finish.test=0.1",
    ]
    command = asked(*words, program=program, own=own)
    assert command.flags.inputs == ["a.mp4", "kind=of", "b.mp4"]
    assert command.flags.inspect == ["x=1", "y=2"]
    assert (command.config.kind, command.config.workers, command.config.finish.test) == ("human", 2, 0.1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "configs/infer/fast.yaml"], "preset=NAME"),
        (["stepz=1"], "did you mean 'steps'"),
        (["--steps", "many"], "steps: got 'many', expected a whole number"),
        (["--steps", "1,2"], "steps: got '1,2'"),
        (["loose"], "override 'loose': expected key=value"),
        (["--cfg", "%"], "--cfg %: expected job, hydra, all, or a number"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["--size", "100x64"], "nearest valid"),
    ],
)
def test_wrong_usage(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(*words)
    assert expected in str(caught.value)


def test_cfg_prints_what_hydra_composes(capsys: pytest.CaptureFixture[str]) -> None:
    def never(command: object) -> int:
        raise AssertionError("the program must not run")

    def shown(*words: str) -> str:
        assert PROGRAM.main(parser(), list(words), never, prepare=prepare) == 0
        return capsys.readouterr().out

    assert "steps: 4\n" in shown("--cfg", "job", "preset=preview", "--steps", "4")
    assert "hydra:\n" not in shown("--cfg", "job")
    assert shown("--cfg", "hydra").startswith("hydra:\n")
    assert "\nsteps: null\n" in (both := shown("--cfg", "all"))
    assert "hydra:\n" in both
    assert shown("--cfg", "job", "--package", "seed") == "42\n"
    assert "${seed}" in shown("--cfg", "job", "prompt=${seed}")
    assert "prompt: '42'" in shown("--cfg", "job", "prompt=${seed}", "--resolve")


def test_jobs_have_outputs_of_their_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[str]] = []

    def end(command: list[str]) -> int:
        commands.append(command[3:])
        return 3 if len(commands) == 1 else 0

    monkeypatch.setattr(multirun, "_wait", end)
    words = ["--ref", "r.png", "seed=1,2", "--out", "o/a.mp4", "-m", "steps=3", "--smooth"]
    code = PROGRAM.main(parser(), words, lambda command: 9, prepare=prepare, numbered=numbered)
    assert code == 3
    flags = ["animate", "--ref", "r.png", "--out", "o/a.mp4", "--smooth"]
    assert commands == [
        [*flags, "steps=3", "smooth=true", f"seed={k + 1}", "--out", f"o/a/{k}/a.mp4"] for k in range(2)
    ]
    out = capsys.readouterr().out
    assert "job 0: exit code 3: seed=1 --out o/a/0/a.mp4" in out
    assert "job 1: done: seed=2 --out o/a/1/a.mp4" in out


def test_no_job_starts_if_one_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multirun, "_wait", lambda command: pytest.fail("a job was started"))
    with pytest.raises(UsageError, match="steps: got 0"):
        PROGRAM.main(parser(), ["-m", "steps=1,0"], lambda command: 0, prepare=prepare, numbered=numbered)


def test_no_multirun_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="--multirun: a launcher has started 2 processes"):
        PROGRAM.main(parser(), ["-m", "seed=1,2"], lambda command: 0, prepare=prepare, numbered=numbered)


def test_drive_kinds_are_flags_not_settings() -> None:
    assert parser().parse_args(["--drive-kind", "pose"]).drive_kind == "pose"


def test_the_console_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in main.COMMANDS)
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("xdyna ")
    assert main.main(["anmate"]) == 2
    assert "expected one of animate, live, train" in capsys.readouterr().err
    assert main.main(["puppets"]) == 0
    assert "train-extractors" in capsys.readouterr().out
    assert main.main(["puppets", "dance"]) == 2
