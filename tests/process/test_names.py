"""Nothing a user made is lost: names of outputs, inputs in the way, two runs at once."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from xdyna.cli.main import main as cli
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256
from xdyna.pipelines.outputs import OutputFiles, free_names, output_names, reserve

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "infer.py"


def names(folder: Path) -> dict[str, Path]:
    return {"reference": Path("me.jpg"), "driving": Path("dance.mp4"), "folder": folder}


@pytest.mark.parametrize(
    ("out", "video"), [("a.mp4", "a.mp4"), ("clip.v2", "clip.v2.mp4"), ("b", "b.mp4"), ("c.MP4", "c.MP4")]
)
def test_names_that_are_given(out, video):
    files = next(output_names(Path(out), **names(Path("outputs"))))
    assert files.video == Path(video)
    assert len({path.name for path in files.all(keypoints=True)}) == 5


@pytest.mark.parametrize("out", ["a.avi", "b.MOV", "c.webm", "d.png"])
def test_a_name_of_another_kind_is_refused(out):
    """Nothing is written as x.avi.mp4 without a word."""
    with pytest.raises(
        UsageError, match=rf"--out '{out}' names another kind of file: save=mp4 makes .mp4 files; give '{out[0]}.mp4'"
    ):
        next(output_names(Path(out), **names(Path("outputs"))))


def test_automatic_names_need_every_file_to_be_free(tmp_path):
    assert free_names(None, **names(tmp_path)).video.name == "me_dance.mp4"
    (tmp_path / "me_dance.sheet.png").touch()
    assert free_names(None, **names(tmp_path)).video.name == "me_dance_2.mp4"
    (tmp_path / "me_dance_2.mp4").symlink_to(tmp_path / "nowhere")
    assert free_names(None, **names(tmp_path)).video.name == "me_dance_3.mp4"


def test_two_runs_take_different_names(tmp_path):
    with reserve(None, overwrite=False, inputs=[], **names(tmp_path)) as first:
        with reserve(None, overwrite=False, inputs=[], **names(tmp_path)) as second:
            assert first.video.name == "me_dance.mp4"
            assert second.video.name == "me_dance_2.mp4"
        with (
            pytest.raises(ValueError, match=r"another run is writing .*me_dance.mp4 now"),
            reserve(first.video, overwrite=True, inputs=[], **names(tmp_path)),
        ):
            pass
    assert os.listdir(tmp_path) == []  # the locks are gone
    with reserve(None, overwrite=False, inputs=[], **names(tmp_path)) as again:
        assert again.video.name == "me_dance.mp4"


def test_inputs_are_never_overwritten(infer, media, tmp_path, capsys):
    """Under any spelling of the name, and even with --overwrite."""
    import shutil

    shutil.copy(media / "poses.mp4", tmp_path / "drive.mp4")
    (tmp_path / "link.mp4").symlink_to("drive.mp4")
    before = file_sha256(tmp_path / "drive.mp4")
    for out in ("drive.mp4", "./drive.mp4", "link.mp4"):
        code = infer("--drive", "drive.mp4", "--drive-kind", "pose", "--out", out, "--overwrite")
        assert code == 2
        assert "is an input of this run and would be overwritten" in capsys.readouterr().err
    assert file_sha256(tmp_path / "drive.mp4") == before


def test_output_files_check(tmp_path):
    files = OutputFiles(tmp_path / "a.mp4")
    files.check_free(overwrite=False, inputs=[])
    files.grid.touch()
    with pytest.raises(ValueError, match=r"a.grid.mp4 exists already"):
        files.check_free(overwrite=False, inputs=[])
    files.check_free(overwrite=True, inputs=[])
    with pytest.raises(UsageError, match="is an input"):
        files.check_free(overwrite=True, inputs=[files.grid])


@pytest.mark.long
def test_two_processes_at_once(checkpoint, media, tmp_path):
    """Both finish, each with all of its own files."""
    command = [sys.executable, SCRIPT, "--ref", media / "ref.png", "--drive", media / "driving.npz", "--steps", "30"]
    command += ["--checkpoint", checkpoint]
    runs = [
        subprocess.Popen([str(c) for c in command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
    stems = {path.name.split(".")[0] for path in (tmp_path / "outputs").iterdir()}
    assert stems == {"ref_driving", "ref_driving_2"}
    assert len(list((tmp_path / "outputs").iterdir())) == 8


def test_batch_entries_may_not_share_a_name(infer, media, tmp_path, capsys):
    entry = {"ref": str(media / "ref.png"), "drive": str(media / "driving.npz"), "out": "one.mp4"}
    (tmp_path / "pairs.json").write_text(json.dumps([entry, {**entry, "out": "./one.mp4"}]))
    assert infer("--batch", "pairs.json", "--overwrite") == 2
    assert "several entries write to" in capsys.readouterr().err
    (tmp_path / "pairs.json").write_text(json.dumps([{**entry, "drive_kind": "wat"}]))
    assert infer("--batch", "pairs.json") == 2
    assert "drive_kind is 'wat', expected one of auto, video, pose, keypoints" in capsys.readouterr().err


def test_partial_result_survives_a_failure_while_writing(infer, tmp_path, capsys, monkeypatch):
    from xdyna.pipelines import animate as module

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_outputs", full)
    assert infer("--out", "a.mp4") == 1
    assert "partial result kept in a.partial;" in capsys.readouterr().out
    assert (tmp_path / "a.partial" / "state.json").exists()


def test_a_partial_result_that_cannot_be_written_does_not_end_the_run(infer, tmp_path, capsys, monkeypatch):
    from xdyna.pipelines import resume

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_file", full)
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_WRITES", 0)
    assert infer("--out", "a.mp4") == 0
    assert "warning: the partial result could not be written" in capsys.readouterr().err
    assert (tmp_path / "a.mp4").exists()


PROGRAMS = {
    "animate": ("--ref", "me.png", "--drive", "dance.npz", "--out"),
    "eval": ("--generated", "me.mp4", "--out"),
    "eval, cache": ("--generated", "me.mp4", "--cache"),
    "preprocess": ("footage", "--out"),
    "preprocess, shards": ("--out", "set", "--shards"),
    "convert": ("--pipeline", "here", "--out"),
    "demo": ("--out",),
    "demo, webp": ("--webp",),
    "bench sampling": ("--json",),
    "bench window": ("--json",),
    "bench live": ("--json",),
    "puppets report": ("--out",),
    "puppets report, card": ("--card",),
    "puppets report, doc": ("--doc",),
    "puppets alignment": ("--image",),
    "puppets alignment, doc": ("--doc",),
    "puppets few-steps": ("--lora", "x", "--out"),
    "puppets faces": ("--out",),
    "puppets long": ("--out",),
    "puppets sensitivity": ("--out",),
    "puppets sensitivity, work": ("--work",),
    "puppets train-extractors": ("--out",),
    "puppets train-segmenter": ("--out",),
    "puppets train-reader": ("--out",),
}


@pytest.mark.skipif(os.name == "nt", reason="no such files")
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_output_that_is_no_plain_file_is_wrong_usage(name, tmp_path, monkeypatch, capsys):
    """As root `--out /dev/null` made /dev/null.mp4, and other programs put a file in the place of the device."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    monkeypatch.setattr("sys.argv", ["xdyna"])
    with pytest.raises(SystemExit) as ended:
        cli([*name.partition(",")[0].split(), *PROGRAMS[name], "pipe"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {PROGRAMS[name][-1]}: output 'pipe' is a pipe, which would be replaced" in said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


@pytest.mark.skipif(os.name == "nt", reason="no such files")
@pytest.mark.parametrize("save", ["mp4", "ffv1", "frames"])
def test_an_output_of_the_library_that_is_no_plain_file_is_refused(save, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe' is a pipe, which would be replaced or left unused"):
        next(output_names(tmp_path / "pipe", save=save, **names(tmp_path)))
    assert os.listdir(tmp_path) == ["pipe"]
