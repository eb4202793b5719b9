"""`scripts/demo.py`: the sample is what the renderer draws, and its pieces reach infer.py."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from xdyna.cli import demo
from xdyna.cli.demo import ASSETS
from xdyna.media.image import read_image
from xdyna.media.video import probe, read_frames
from xdyna.perception.types import PoseTrack
from xdyna.pipelines import animate
from xdyna.pipelines import controls as conditions
from xdyna.pipelines import folder as weights
from xdyna.puppets.sample import (
    DRIVING,
    FRAMES,
    REFERENCE,
    SIZE,
    SampleFiles,
    driving_clip,
    reference_clip,
    write_sample,
)
from xdyna.puppets.world import DYNAMIC_SCENES, EXPRESSIONS, SPLITS


def test_the_assets_are_what_the_renderer_draws():
    files, still, driving = SampleFiles(ASSETS), reference_clip(), driving_clip()
    assert files.complete()
    # Not exactly: other versions of OpenCV and ffmpeg round otherwise.
    assert np.abs(read_image(files.reference).astype(int) - still.frames[0]).mean() < 0.5
    info = probe(files.driving)
    assert (info.frame_count, info.fps, info.height, info.width) == (FRAMES, 12.0, *SIZE)
    pairs = zip(read_frames(files.driving), driving.frames, strict=True)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in pairs) < 3
    for path, clip in ((files.reference_points, still), (files.driving_points, driving)):
        track = PoseTrack.load(path)
        for part in ("body", "hands", "face"):
            np.testing.assert_allclose(getattr(track, part), getattr(clip, part), atol=0.01)
        assert track.size == SIZE
        assert track.frame_index.tolist() == list(range(len(clip.frames)))


def test_the_assets_are_small_and_never_trained_on():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 300_000
    for ours, theirs in zip(REFERENCE, DRIVING, strict=True):
        assert ours in SPLITS["test"]
        assert theirs in SPLITS["test"]
        assert ours != theirs
    assert reference_clip().scene_kind in DYNAMIC_SCENES


def test_the_first_frames_show_a_dance_and_a_talking_face():
    """Those that the demo uses; whoever changes a seed looks for another lively one."""
    clip = driving_clip()
    first = slice(0, 16)
    assert (clip.body[first, :, 2] > 0).all()
    assert (clip.face[first, :, 2] > 0).all()
    wrists = clip.body[first][:, [4, 7], :2]
    assert np.ptp(wrists, axis=0).max() > 0.2 * SIZE[0]
    assert np.ptp(clip.expression[first, EXPRESSIONS.index("mouth_open")]) > 0.5


@pytest.mark.long
def test_a_sample_is_the_same_every_time(tmp_path):
    first, second = write_sample(tmp_path / "a"), write_sample(tmp_path / "b")
    for name in ("reference", "reference_points", "driving", "driving_points"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()
    assert write_sample(tmp_path / "a").complete()  # replaces what is there
    first.driving_points.unlink()
    assert not first.complete()


def test_render_writes_the_assets(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--render"]) == 0
    assert SampleFiles(tmp_path / "assets").complete()
    assert "reference.png" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("there", [True, False])
def test_the_demo_animates_without_a_detector(checkpoint, tmp_path, monkeypatch, capsys, there):
    def refuse(*args, **kwargs):
        raise AssertionError("a detector was asked for")

    monkeypatch.setattr(conditions, "get_backend", refuse)
    monkeypatch.setattr(conditions, "track_person", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "TINY", checkpoint)  # and not the published weights, where those are installed
    if not there:
        monkeypatch.setattr(demo, "ASSETS", tmp_path / "none")
    plans = []
    original = animate.plan_animation
    monkeypatch.setattr(animate, "plan_animation", lambda *a, **k: plans.append(original(*a, **k)) or plans[-1])
    assert demo.main(["--frames", "3", "--steps", "1"]) == 0
    told = capsys.readouterr().out
    assert "3 frames, 32x32, 12 fps" in told
    assert str(tmp_path / "outputs" / "demo" / "demo.mp4") in told
    assert "s in all, " in told
    assert "s of it sampling" in told
    [plan] = plans
    assert plan.face
    assert plan.driving.rows.tolist() == [0, 1, 2]
    assert (Path("outputs") / "demo" / "sample" / "driving.npz").exists() != there
    assert demo.main(["--frames", "2", "--steps", "1", "--no-face"]) == 0  # the earlier result stays
    assert (tmp_path / "outputs" / "demo" / "demo_2.mp4").exists()
    assert not plans[-1].face


def arguments(*given: str) -> list[str]:
    args: argparse.Namespace = demo._parser().parse_args(given)
    return demo.command(args, SampleFiles(Path("s")), Path("o.mp4"))


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_the_distilled_model_unless_something_else_is_asked_for(monkeypatch, tmp_path):
    """With its weights there; what is said about steps, weights or a preset goes first."""
    monkeypatch.setattr("xdyna.core.resources.pretrained", lambda name: tmp_path / name)
    parse = demo._parser().parse_args
    assert not demo.few_steps(parse([]), [])
    (tmp_path / "xdyna-tiny-few-step").mkdir()
    (tmp_path / "xdyna-tiny-few-step" / "lora.safetensors").touch()
    assert demo.few_steps(parse([]), ["--seed", "3", "fps=8"])
    assert not demo.few_steps(parse(["--steps", "10"]), [])
    for word in ("preset=fast", "+preset=fast", "steps=4", "--lora", "--scheduler=unipc", "--checkpoint"):
        assert not demo.few_steps(parse([]), [word]), word
    assert "--steps" not in arguments()
    assert value(arguments("--steps", "4"), "--steps") == "4"


def test_real_motion_is_fitted_to_the_puppet():
    words = arguments("--drive", "person.mp4")
    assert value(words, "--ref") == str(Path("s") / "reference.png")
    assert value(words, "--drive") == "person.mp4"
    assert value(words, "--ref-keypoints") == str(Path("s") / "reference.npz")
    assert {"--align", "--puppet-face"} <= set(words)
    assert "--face-video" not in words
    assert "--puppet-face" not in arguments("--drive", "points.npz")  # no faces there
    for given in (("--drive", "person.mp4", "--no-align"), ("--drive", "person.mp4", "--ref", "me.jpg"), ()):
        assert not {"--align", "--puppet-face"} & set(arguments(*given))
    own = arguments("--drive", "person.mp4", "--ref", "me.jpg", "--align")
    assert "--align" in own
    assert not {"--ref-keypoints", "--puppet-face"} & set(own)  # those of the puppet


def test_an_own_image_dances_the_sample():
    words = arguments("--ref", "me.jpg", "--frames", "5")
    assert value(words, "--ref") == "me.jpg"
    assert value(words, "--drive") == str(Path("s") / "driving.npz")
    assert value(words, "--face-video") == str(Path("s") / "driving.mp4")
    assert value(words, "--frames") == "5"
