"""`scripts/infer.py` from end to end, on small files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiers import long
from xdyna.cli.infer import main
from xdyna.config.infer import InferConfig
from xdyna.core.errors import WeightsError
from xdyna.core.files import file_sha256, path_sha256
from xdyna.core.program import run
from xdyna.media.image import read_image
from xdyna.media.video import probe, read_frames
from xdyna.perception.types import PoseTrack
from xdyna.pipelines.animate import Frames
from xdyna.pipelines.folder import find_checkpoint
from xdyna.pipelines.plan import Request, plan_animation
from xdyna.pipelines.untrained import build_untrained


def outputs(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts
    )


def test_files_duration_and_manifest(infer, tmp_path, capsys):
    assert infer("--out", "out.mp4") == 0
    assert outputs(tmp_path) == ["out.grid.mp4", "out.mp4", "out.run.json", "out.sheet.png"]
    info = probe(tmp_path / "out.mp4")
    assert (info.height, info.width, info.frame_count) == (32, 32, 7)
    assert info.fps == pytest.approx(10)
    assert info.duration == pytest.approx(0.7)
    grid = probe(tmp_path / "out.grid.mp4")
    assert grid.frame_count == 7
    assert grid.width > 2 * 240
    assert read_image(tmp_path / "out.sheet.png").std() > 10
    manifest = json.loads((tmp_path / "out.run.json").read_text())
    assert manifest["config"]["steps"] == 2
    assert manifest["config"]["seed"] == 42
    assert torch.__version__.startswith(manifest["versions"]["torch"])  # a build of one index says "+cu130"
    assert manifest["outputs"]["out.mp4"] == file_sha256(tmp_path / "out.mp4")
    assert len(manifest["weights"]) == 7
    assert all(len(digest) == 64 for digest in manifest["weights"].values())
    told = capsys.readouterr().out
    assert "untrained" in told
    assert "wrote out.mp4" in told
    assert "7 frames, 32x32, 10 fps, 0.70 s, silent" in told


def test_same_command_same_bytes(infer, tmp_path):
    for name in ("a", "b"):
        assert infer("--out", f"{name}.mp4") == 0
    assert infer("--out", "c.mp4", "--seed", "7") == 0
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.long
def test_long_videos_keep_their_pictures_on_disk(infer, tmp_path, monkeypatch):
    from xdyna.pipelines import animate, controls

    assert infer("--out", "a.mp4") == 0
    monkeypatch.setattr(controls, "IN_MEMORY_BYTES", 0)
    seen = []
    original = animate.prepare
    monkeypatch.setattr(animate, "prepare", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    assert infer("--out", "b.mp4") == 0
    assert not seen[0].pose.flags.owndata
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.long
def test_nothing_is_overwritten(infer, tmp_path, capsys):
    assert infer("--out", "out.mp4") == 0
    before = (tmp_path / "out.mp4").read_bytes()
    assert infer("--out", "out.mp4", "--seed", "7") == 1
    assert "out.mp4 exists already; choose another --out, or give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.mp4").read_bytes() == before
    assert infer("--out", "out.mp4", "--seed", "7", "--overwrite") == 0
    assert (tmp_path / "out.mp4").read_bytes() != before


@pytest.mark.long
def test_automatic_names_are_numbered(infer, tmp_path):
    for _ in range(2):
        assert infer() == 0
    videos = [name for name in outputs(tmp_path) if name.endswith(".mp4") and ".grid" not in name]
    assert videos == ["outputs/ref_driving.mp4", "outputs/ref_driving_2.mp4"]


@pytest.mark.parametrize(
    ("options", "frames", "fps"),
    [
        (["--fps", "20"], 14, 20),
        *long((["--fps", "5"], 4, 5), (["--stride", "2"], 4, 5)),
        (["--frames", "3"], 3, 10),
    ],
)
def test_frame_rates_keep_the_duration(infer, tmp_path, options, frames, fps):
    assert infer("--out", "out.mp4", *options) == 0
    info = probe(tmp_path / "out.mp4")
    assert info.frame_count == frames
    assert info.fps == pytest.approx(fps)


@pytest.mark.long
def test_pose_video_equals_keypoints(infer, media, tmp_path):
    """The same skeletons, drawn beforehand: the same pose maps but for the video's compression."""
    size = ("--size", "96x64", "--steps", "1")  # that of the skeletons
    assert infer("--out", "a.mp4", *size) == 0
    assert infer("--out", "b.mp4", "--drive", media / "poses.mp4", "--drive-kind", "pose", *size) == 0
    a, b = (np.stack(list(read_frames(tmp_path / f"{n}.grid.mp4"))).astype(int) for n in "ab")
    assert a.shape == b.shape
    pose = slice(a.shape[2] // 3 + 8, 2 * a.shape[2] // 3 - 8)  # reference | pose | result
    assert a[:, 40:, pose].std() > 15
    assert np.abs(a[:, 40:, pose] - b[:, 40:, pose]).mean() < 4
    assert probe(tmp_path / "b.mp4").frame_count == 7


@pytest.mark.long
def test_size_and_config_file(infer, tmp_path):
    (tmp_path / "own" / "preset").mkdir(parents=True)
    (tmp_path / "own" / "preset" / "my.yaml").write_text(
        "# @package _global_\nheight: 48\nwidth: 40\nsteps: 1\nguidance: 1.0\n"
    )
    assert infer("--out", "a.mp4", "--config-dir", "own", "preset=my") == 0
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width) == (48, 40)
    manifest = json.loads((tmp_path / "a.run.json").read_text())
    assert manifest["config"]["guidance"] == 1.0
    assert manifest["config"]["steps"] == 2  # the command line wins
    assert infer("--out", "b.mp4", "--config-dir", "own", "preset=my", "--size", "64x32") == 0
    assert probe(tmp_path / "b.mp4").height == 64


def test_alignment_fits_the_driving_person_to_the_reference(infer, media, tmp_path, monkeypatch, capsys):
    """The person in the image is half as large and lower: the drawn skeleton follows, and back again to no change."""
    from tests.process.small import standing_figure
    from xdyna.perception.types import Person
    from xdyna.pipelines import controls as conditions

    body = standing_figure(frames=1).body[0].copy()
    body[:, :2] = body[:, :2] * 0.5 + (16, 40)

    class Backend:
        def detect(self, picture):
            assert picture.shape == (96, 64, 3)
            empty = np.zeros((2, 21, 3), np.float32)
            return [Person(body=body, hands=empty, face=np.zeros((68, 3), np.float32), box=np.zeros(4), score=1.0)]

    monkeypatch.setattr(conditions, "get_backend", lambda name: Backend())
    drawn = []
    original = conditions.draw_styled

    def spy(points, *args, **kwargs):
        drawn.append(points.copy())
        return original(points, *args, **kwargs)

    monkeypatch.setattr(conditions, "draw_styled", spy)
    assert infer("--align", "--size", "96x64", "--out", "out.mp4", "--steps", "1") == 0
    legs = slice(8, 14)
    np.testing.assert_allclose(drawn[0][legs, :2], body[legs, :2], atol=1.0)
    assert "driving person scaled by 0.5" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.run.json").read_text())["alignment"]
    assert report["scale"] == pytest.approx(0.5, abs=0.02)
    assert infer("--align", "--drive", media / "poses.mp4", "--drive-kind", "pose") == 2
    assert "cannot move the skeletons of a pose video" in capsys.readouterr().err
    assert infer("--puppet-face", "--size", "96x64") == 2
    assert "give --align too" in capsys.readouterr().err


@pytest.mark.long
def test_batch_in_both_forms(infer, media, tmp_path, capsys):
    ours = [{"ref": str(media / "ref.png"), "drive": str(media / "driving.npz"), "out": "one.mp4"}]
    published = [
        {"image_path": str(media / "ref.png"), "caption": "", "target_no_head_poses": str(media / "poses.mp4")},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(ours + published))
    assert infer("--batch", "pairs.json") == 0
    assert {"one.mp4", "outputs/ref_poses.mp4"} <= set(outputs(tmp_path))
    assert "2 of 2 animations made" in capsys.readouterr().out


def test_batch_goes_on_after_a_failure(infer, media, tmp_path, capsys):
    good = {"ref": str(media / "ref.png"), "drive": str(media / "driving.npz"), "out": "good.mp4"}
    (tmp_path / "pairs.json").write_text(json.dumps([{**good, "ref": "missing.png", "out": "bad.mp4"}, good]))
    assert infer("--batch", "pairs.json") == 1
    assert "good.mp4" in outputs(tmp_path)
    captured = capsys.readouterr()
    assert "1 of 2 animations made" in captured.out
    assert "missing.png: no such file" in captured.err


def test_dry_run_writes_nothing(infer, tmp_path, capsys):
    assert infer("--dry-run", "--frames", "7", "--seed", "3") == 0
    assert list(tmp_path.iterdir()) == []
    told = capsys.readouterr().out
    for part in (
        "7 frames of 32x32",
        "2 steps x 1 windows of 7 frames",
        "seed 3",
        "estimate",
        "TFLOP",
        "unet/diffusion",
    ):
        assert part in told
    assert len([line for line in told.splitlines() if len(line.split()[0] if line.split() else "") == 64]) == 7


def test_interrupted_run_goes_on(infer, media, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle of sampling keeps the latents; the same command then gives the bytes of an unbroken run."""
    from xdyna.pipelines import denoise as animate

    assert infer("--out", "whole.mp4", "--steps", "4") == 0
    original, calls = animate.predict_noise, []

    def interrupt_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(animate, "predict_noise", interrupt_third)
    assert infer("--out", "cut.mp4", "--steps", "4") == 130
    told = capsys.readouterr()
    assert "partial result kept in cut.partial" in told.out
    assert "interrupted" in told.err
    assert {name.split("/")[0] for name in outputs(tmp_path) if name.startswith("cut")} == {"cut.partial"}
    assert infer("--out", "cut.mp4", "--steps", "4") == 0
    assert "going on after step 2 of 4" in capsys.readouterr().out
    assert len(calls) == 3 + 2
    assert (tmp_path / "cut.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.long
def test_partial_result_of_another_run_is_not_used(infer, tmp_path, capsys, monkeypatch):
    from xdyna.pipelines import denoise as animate

    original, calls = animate.predict_noise, []

    def interrupt_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(animate, "predict_noise", interrupt_second)
    assert infer("--out", "cut.mp4") == 130
    capsys.readouterr()
    assert infer("--out", "cut.mp4", "--seed", "9") == 0
    assert "going on" not in capsys.readouterr().out
    (tmp_path / "cut.partial").mkdir()
    (tmp_path / "cut.partial" / "state.json").write_bytes(b"damaged")
    assert infer("--out", "cut.mp4", "--seed", "10", "--overwrite") == 0


def test_ctrl_c_while_writing_leaves_no_half_video(infer, tmp_path, monkeypatch):
    from xdyna.pipelines import writing as module

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "grid_frame", interrupted)
    assert infer("--out", "cut.mp4") == 130
    assert [name for name in outputs(tmp_path) if name.endswith((".mp4", ".png"))] == []


@pytest.mark.long
def test_broken_off_by_sigterm(checkpoint, media, tmp_path):
    """A real process, a real signal: exit code 130, no traceback, no output under its final name."""
    script = Path(__file__).resolve().parents[2] / "scripts" / "infer.py"
    command = [sys.executable, script, "--ref", media / "ref.png", "--drive", media / "driving.npz"]
    command += ["--checkpoint", checkpoint, "--steps", "999", "--out", tmp_path / "out.mp4"]
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    shown = ""
    while "denoising:   1%" not in shown and (letter := process.stderr.read(1)):
        shown += letter
    process.terminate()
    err = shown + process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert {name.split("/")[0] for name in outputs(tmp_path)} == {"out.partial"}


def test_usage_errors(capsys):
    assert run(main, []) == 2
    assert "give an image with --ref" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        run(main, ["--frobnicate"])
    assert error.value.code == 2


def test_too_many_steps(infer, capsys):
    assert infer("--steps", "1000") == 1
    assert "1000 steps are more than this checkpoint's scheduler has" in capsys.readouterr().err


def test_debug_shows_the_traceback(infer, capsys):
    assert infer("--ref", "missing.png") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert infer("--ref", "missing.png", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_unexpected_errors_are_one_message(infer, capsys, monkeypatch):
    from xdyna.pipelines import animate as module

    def broken(*args, **kwargs):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(module, "write_outputs", broken)
    assert infer("--out", "a.mp4") == 1
    err = capsys.readouterr().err
    assert "unexpected error: ZeroDivisionError" in err
    assert "--debug" in err
    assert "Traceback" not in err


def test_keypoints_track_round_trip(media):
    track = PoseTrack.load(media / "driving.npz")
    assert track.body.shape == (7, 18, 3)


def test_a_checkpoint_may_bring_its_own_guidance(checkpoint, media, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    assert find_checkpoint(folder, build_untrained).contract.guidance == 7.5
    (folder / "sampling.json").write_text('{"guidance": 1.5}')
    found = find_checkpoint(folder, build_untrained)
    for given, used in ((None, 1.5), (3.0, 3.0)):
        plan = plan_animation(
            Request(media / "ref.png", media / "driving.npz", tmp_path / "out.mp4"), InferConfig(guidance=given), found
        )
        assert plan.settings.guidance == used
    for wrong in ("{", '{"guidance": "high"}', '{"guidance": -1}', "{}"):
        (folder / "sampling.json").write_text(wrong)
        with pytest.raises(WeightsError, match=r"sampling\.json"):
            find_checkpoint(folder, build_untrained)


def test_saving_without_loss(infer, tmp_path):
    """Frames and FFV1 hold the same pixels; the mp4 is near them."""
    for save, out in (("frames", "folder"), ("ffv1", "a.mkv"), ("mp4", "a.mp4")):
        assert infer("--save", save, "--out", f"{save}/{out}", "--frames", "3") == 0
    folder, lossless, mp4 = (Frames(tmp_path / path).numpy() for path in ("frames/folder", "ffv1/a.mkv", "mp4/a.mp4"))
    assert folder.shape[0] == 3
    assert np.array_equal(folder, lossless)
    assert 5 < np.abs(mp4.astype(int) - folder).mean() < 25  # noise of an untrained model, halved in colour
    manifest = json.loads((tmp_path / "frames" / "folder.run.json").read_text())
    assert manifest["outputs"]["folder"] == path_sha256(tmp_path / "frames" / "folder")
    assert infer("--save", "frames", "--out", "frames/folder", "--frames", "3") == 1  # nothing is replaced unasked
    assert infer("--save", "frames", "--out", "frames/folder", "--frames", "2", "--overwrite") == 0
    assert len(Frames(tmp_path / "frames" / "folder")) == 2
    assert infer("--save", "ffv1", "--out", "x.mp4") == 2
