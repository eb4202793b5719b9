import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.unit.preprocess.made import Here, quick_process
from xdyna.cli import preprocess as program
from xdyna.config.loader import compose
from xdyna.config.preprocess import PreprocessConfig
from xdyna.core import program as guard
from xdyna.data.store import read_dataset
from xdyna.media import VideoWriter, probe
from xdyna.puppets.world.render import render_clip

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def preprocess(tmp_path, monkeypatch, capfd):
    """Runs preprocess.py in a folder of its own, with a stand-in for the processing of videos."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xdyna.preprocess.engines.LocalEngine", Here)
    monkeypatch.setattr("xdyna.preprocess.video.process_video", quick_process)
    footage = tmp_path / "footage"
    footage.mkdir()
    for name, content in (("a.mp4", b"a"), ("b.mp4", b"bb"), ("c.mp4", b"")):
        (footage / name).write_bytes(content)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = guard.run(program.main, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_a_folder_becomes_a_data_set(preprocess) -> None:
    code, out, err = preprocess("footage", "--out", "set")
    assert code == 0, err
    assert "3 videos (8.0 s): 4 clips (0.8 s; 4 human;" in out
    assert "1  the file cannot be read as a video" in out
    assert "3/3 videos, 4 clips, 3 skips" in err
    assert len(read_dataset(Path("set")).records) == 4
    code, out, _ = preprocess("--check", "set", "--check-videos")
    assert (code, out) == (0, "set: everything is there and fits\n")
    (Path("set") / read_dataset(Path("set")).records[0].arrays).unlink()
    code, out, _ = preprocess("--check", "set")
    assert code == 1
    assert "set: 1 problems" in out


def test_parts_and_their_end(preprocess) -> None:
    assert preprocess("footage", "--out", "set", "--shard", "0/2")[0] == 0
    code, _, err = preprocess("footage", "--out", "set", "--finish")
    assert (code, "1 of 3 videos are not processed yet" in err) == (1, True)
    assert preprocess("footage", "--out", "set", "--shard", "1/2")[0] == 0
    assert preprocess("footage", "--out", "set", "--finish")[0] == 0
    assert len(read_dataset(Path("set")).records) == 4


def test_settings_reach(preprocess, tmp_path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "preprocess.yaml").write_text(
        "defaults: [schema/preprocess, _self_]\nfinish: {validation: 0.9}\npreprocess: {min_frames: 30, looks: 7}\n"
    )
    settings = ("finish.split_seed=3", "--set", "preprocess.min_frames=31", "--kind", "human")
    code, _, err = preprocess(settings[0], "footage", "--config-dir", "own", "--out", "set", *settings[1:])
    assert code == 0, err
    header = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert header["options"]["finish"]["validation"] == 0.9
    assert header["options"]["finish"]["split_seed"] == 3
    assert header["options"]["preprocess"]["min_frames"] == 31
    assert header["options"]["preprocess"]["looks"] == 7


def test_the_shipped_settings_are_the_defaults() -> None:
    assert compose(PreprocessConfig, "preprocess").config == PreprocessConfig()


def test_a_dry_run_writes_nothing(preprocess, tmp_path) -> None:
    code, out, err = preprocess("footage", "--out", "set", "--dry-run")
    assert code == 0, err
    assert "0 videos are done, 3 to do" in out
    assert "their duration is not known" in out
    assert not (tmp_path / "set").exists()
    with VideoWriter(tmp_path / "real" / "film.mp4", fps=10, size=(64, 64)) as writer:
        for _ in range(50):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert probe(tmp_path / "real" / "film.mp4").duration == 5
    code, out, _ = preprocess("real", "--out", "set", "--dry-run", "--workers", 2)
    assert "about 5.0 s of footage" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["footage"], "give --out DIR"),
        (["--out", "set"], "give at least one folder, glob, video or list"),
        (["empty", "--out", "set"], "empty"),
        (["nowhere.mp4", "--out", "set"], "nowhere.mp4"),
        (["list.csv", "--out", "set"], "list.csv"),
        (["footage", "--out", "other"], "holds something else than a data set"),
        (["footage", "--out", "file"], "holds something else than a data set"),
        (["footage", "--out", "set", "--set", "preprocess.min_fames=3"], "did you mean 'preprocess.min_frames'"),
        (["footage", "--out", "set", "--set", "finish.test=2"], "expected shares whose sum is below 1"),
        (["footage", "--out", "set", "--shard", "2/2"], "expected I/N with I from 0 to N - 1"),
        (["footage", "--out", "set", "--shard", "0/2", "--finish"], "--shard processes a part"),
        (["footage", "--out", "set", "--ray-address", "auto"], "--ray-address needs --engine ray"),
        (["footage", "--out", "set", "--shards", "tars"], "leave the inputs out"),
        (["s4://bucket/film.mp4", "--out", "set"], "addresses 's4://...' cannot be read"),
        (["footage", "--out", "made", "--set", "preprocess.min_frames=48"], "made with other options (min_frames was"),
    ],
)
def test_wrong_usage_is_one_message(preprocess, tmp_path, arguments, message) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "list.csv").write_text("id,kind\na,human\n")
    if "made" in arguments:
        assert preprocess("footage", "--out", "made")[0] == 0
    code, _, err = preprocess(*arguments)
    assert (code, message in err) == (guard.USAGE, True), err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "set").exists()


def test_failures_are_one_message(preprocess, tmp_path) -> None:
    code, _, err = preprocess("footage/c.mp4", "--out", "none")
    assert (code, "none of 1 videos gave a clip (unreadable: 1)" in err) == (guard.FAILURE, True)
    assert preprocess("footage", "--out", "set")[0] == 0
    (tmp_path / "set" / "manifest.parquet").write_bytes(b"PAR1")
    for arguments in (["--check", "set"], ["--inspect", "set", "a-0000"], ["--out", "set", "--shards", "tars"]):
        code, _, err = preprocess(*arguments)
        assert (code, "manifest.parquet' is damaged" in err) == (guard.FAILURE, True)
    code, _, err = preprocess("--inspect", "footage", "a-0000")
    assert (code, "is no finished data set" in err) == (guard.FAILURE, True)


def test_interrupted_it_says_how_to_go_on(preprocess, monkeypatch) -> None:
    def interrupted(self, tasks, work):
        yield 0, work(tasks[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Here, "run", interrupted)
        code, _, err = preprocess("footage", "--out", "set")
    assert code == guard.INTERRUPTED
    assert "run the same command again to continue" in err
    assert preprocess("footage", "--out", "set")[0] == 0


@pytest.mark.slow
def test_a_terminated_run_ends_at_once_and_goes_on(tmp_path) -> None:
    footage, out = tmp_path / "footage", tmp_path / "set"
    for number in range(2):
        with VideoWriter(footage / f"{number}.mp4", fps=12, size=(256, 320)) as writer:
            for frame in render_clip(0, 0, number, frames=30, size=(256, 320), kind="scene", scene_kind="sea").frames:
                writer.write(frame)
    command = [
        sys.executable,
        str(ROOT / "scripts" / "preprocess.py"),
        str(footage),
        "--out",
        str(out),
        "--kind",
        "scene",
    ]
    command += ["--workers", "2", "--set", "finish.duplicate_bits=-1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (out / ".work" / "lock").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == guard.INTERRUPTED, err
    assert "run the same command again to continue" in err
    assert "Traceback" not in err
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_dataset(out).records) == 2
