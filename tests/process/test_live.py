"""`xdyna live` as a program: keypoints from the standard input, ended by Ctrl-C; and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.small import standing_figure
from xdyna.cli.live import main
from xdyna.core.program import run
from xdyna.media.video import probe

ROOT = Path(__file__).resolve().parents[2]


def test_ctrl_c_leaves_a_video_that_can_be_read(checkpoint: Path, media: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xdyna", "live", "--ref", media / "ref.png", "--drive", "-", "--out", "a.mp4"]
    command += ["--checkpoint", checkpoint, "new=3", "held=1", "fps=10", "drop=false", "guidance=1", "every=0.01"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [str(word) for word in command], cwd=tmp_path, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as program:  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None
        track = standing_figure(frames=7)
        for body in track.body:
            program.stdin.write(json.dumps({"size": [96, 64], "body": body.tolist()}) + "\n")
        program.stdin.flush()
        said = ""
        while said.count("frames/s") < 2:  # two windows: 4 and 3 frames
            line = program.stdout.readline()
            assert line, said
            said += line
        program.send_signal(signal.SIGINT)  # its input is still open
        program.wait(timeout=60)  # not `communicate`, which would end the input
        rest = program.stdout.read()
    assert program.returncode == 0, said + rest
    assert "stopped: 7 frames" in rest
    info = probe(tmp_path / "a.mp4")
    assert (info.frame_count, info.fps, info.height, info.width) == (7, 10.0, 32, 32)
    manifest = json.loads((tmp_path / "a.run.json").read_text())
    assert manifest["live"]["ended"] == "stopped"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.run.json"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--ref", "x.png"], 2, "give a picture with --ref and an input with --drive"),
        (["--ref", "x.png", "--drive", "camera:x"], 2, "expected the number of a camera"),
        (["--ref", "x.png", "--drive", "gone.mp4"], 2, "no such file"),
        (["--ref", "x.png", "--drive", "-", "new=0"], 2, "new: got 0, expected 1 or more"),
        (["--ref", "x.png", "--drive", "-", "save=raw", "--out", "a.mp4"], 2, "give --out -, or another --save"),
        (["--ref", "x.png", "--drive", "-", "preset=nothing"], 2, "preset"),
    ],
)
def test_wrong_usage_is_one_sentence(words, code, message, checkpoint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, [*words, "--checkpoint", str(checkpoint)]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch(capsys) -> None:
    code = "import sys; from xdyna.cli.live import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--held-as" in done.stdout
    assert "frames rather than fall behind" in " ".join(done.stdout.split())
