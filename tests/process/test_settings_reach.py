"""Every setting gets to where it acts: the pipeline's arguments, the sound of the video, files beside a batch file."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml

from tests.process.small import standing_figure
from tests.unit.media.conftest import encode_sound
from xdyna.config.contract import PUBLISHED_GUIDANCE, PUBLISHED_STEPS
from xdyna.config.infer import InferConfig
from xdyna.media.image import CropResize, read_image
from xdyna.media.video import probe
from xdyna.media.writer import VideoWriter
from xdyna.pipelines import controls as conditions
from xdyna.pipelines import folder as checkpoint_module
from xdyna.pipelines.batch import read_pairs
from xdyna.pipelines.driving import open_driving
from xdyna.pipelines.folder import find_checkpoint
from xdyna.pipelines.xdyna import XDynaPipeline, XDynaPipelineOutput

# Every value differs from its default and from every other number here.
OTHER = {
    "steps": 3,
    "guidance": 2.5,
    "seed": 1234,
    "context_frames": 5,
    "context_overlap": 2,
    "context_schedule": "uniform_open",
    "similarity_prior": False,
    "vae_chunk": 6,
    "prompt": "a person dances",
    "negative_prompt": "blurry",
}
PIPELINE_OPTIONS = {  # settings -> arguments of the pipeline's call
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "context_frames": "context_frames",
    "context_overlap": "context_overlap",
    "context_schedule": "context_schedule",
    "similarity_prior": "similarity_prior",
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
}


@dataclasses.dataclass
class Call:
    """One call of the pipeline by the program."""

    pipeline: XDynaPipeline
    reference: np.ndarray
    pose: np.ndarray
    face: np.ndarray | None
    options: dict[str, Any]
    chunk: int = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls of the pipeline, which gives black latents instead of sampling."""
    seen: list[Call] = []
    decode = XDynaPipeline.decode_frames

    def call(self, image, pose_video, face_video=None, **options):
        options["seed"] = options["generator"].initial_seed()
        seen.append(Call(self, image, pose_video, face_video, options))
        height, width = pose_video.shape[1:3]
        return XDynaPipelineOutput(frames=torch.zeros(1, 4, len(pose_video), height // 8, width // 8))

    def decode_frames(self, latents, *, chunk=4, decoder="vae"):
        seen[-1].chunk = chunk
        return decode(self, latents, chunk=chunk, decoder=decoder)

    monkeypatch.setattr(XDynaPipeline, "__call__", call)
    monkeypatch.setattr(XDynaPipeline, "decode_frames", decode_frames)
    return seen


def check(call: Call, **changes: Any) -> None:
    """Everything that reached the pipeline is as published, but for the changes."""
    defaults = {field.name: field.default for field in dataclasses.fields(InferConfig) if field.name in OTHER}
    expected = (
        defaults | {"guidance": PUBLISHED_GUIDANCE, "steps": PUBLISHED_STEPS} | changes
    )  # what the file leaves to the checkpoint
    names = {**PIPELINE_OPTIONS, "seed": "seed"}
    assert {name: call.options[argument] for name, argument in names.items()} == {
        name: expected[name] for name in names
    }
    assert call.chunk == expected["vae_chunk"]


def test_the_defaults_are_those_of_the_pipeline():
    arguments = inspect.signature(XDynaPipeline.__call__).parameters
    for name, argument in PIPELINE_OPTIONS.items():
        default, ours = arguments[argument].default, getattr(InferConfig(), name)
        assert ours == default or (ours, default) == ("", None), name
        assert OTHER[name] != getattr(InferConfig(), name), name


@pytest.mark.parametrize("name", [*OTHER, None])
def test_each_sampling_setting_of_a_file_reaches_the_pipeline(infer, calls, tmp_path, name):
    """The setting changes what it should and nothing else; None: the published settings."""
    change = {name: OTHER[name]} if name else {}
    (tmp_path / "own" / "preset").mkdir(parents=True)
    written = yaml.safe_dump({"steps": 25, **change})
    (tmp_path / "own" / "preset" / "my.yaml").write_text(f"# @package _global_\n{written}")
    assert infer("--config-dir", "own", "preset=my", "--out", "a.mp4", "--steps", change.get("steps", 25)) == 0
    check(calls[0], **change)


def test_all_sampling_options_of_the_command_line_reach_the_pipeline(infer, calls):
    given = {"--steps": "steps", "--cfg": "guidance", "--seed": "seed", "--context-schedule": "context_schedule"}
    given |= {"--prompt": "prompt", "--negative-prompt": "negative_prompt"}
    arguments = [part for option, name in given.items() for part in (option, OTHER[name])]
    assert infer("--out", "a.mp4", *arguments) == 0
    check(calls[0], **{name: OTHER[name] for name in given.values()})


@pytest.mark.long
def test_the_seed_draws_the_reference_latents(infer, calls):
    for number, seed in enumerate((1, 1, 2)):
        assert infer("--out", f"{number}.mp4", "--seed", seed) == 0
    first, again, other = (call.options["precomputed"].reference_latents for call in calls)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    states = [call.options["generator"].get_state() for call in calls]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], torch.Generator().manual_seed(1).get_state())  # the same generator goes on


def test_pictures_that_reach_the_pipeline(infer, calls, media, monkeypatch):
    """The whole reference for the image tokens; latents of its middle (without face) or upper part (with face)."""
    track = standing_figure(frames=7)
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    track.face[:] = np.stack([32 + 4 * np.cos(angles), 14 + 5 * np.sin(angles), np.ones(68)], axis=-1)
    monkeypatch.setattr(
        conditions, "track_person", lambda path, *, frame_indices, **kwargs: track.select(frame_indices)
    )
    reference = read_image(media / "ref.png")
    fitted = []
    original = XDynaPipeline.encode_reference

    def spy(self, picture, generator=None):
        fitted.append(np.asarray(picture))
        return original(self, picture, generator)

    monkeypatch.setattr(XDynaPipeline, "encode_reference", spy)
    drive = ("--drive", media / "poses.mp4", "--size", "40x40")
    assert infer("--out", "a.mp4", *drive) == 0
    assert infer("--out", "b.mp4", *drive, "--no-face") == 0
    assert [call.face is None for call in calls] == [False, True]
    assert [call.pipeline.face_controlnet is None for call in calls] == [False, True]
    assert calls[0].face.shape == (7, 40, 40, 6)
    for call, picture, top, how in zip(calls, fitted, (8, 16), ("area", "bilinear"), strict=True):
        np.testing.assert_array_equal(call.reference, reference)
        crop = CropResize(box=(0, top, 64, 64), size=(40, 40))
        assert (crop.image(reference, interpolation="area") != crop.image(reference, interpolation="bilinear")).any()
        np.testing.assert_array_equal(picture, crop.image(reference, interpolation=how))
        assert call.pose.shape == (7, 40, 40, 3)


def test_dtype_and_device_reach_the_loading(infer, calls, monkeypatch):
    from xdyna.pipelines import model as module

    loaded = []
    original = module.load_pipeline

    def spy(found, **options):
        loaded.append(dict(options))
        return original(found, **options)

    monkeypatch.setattr(module, "load_pipeline", spy)
    assert infer("--out", "a.mp4", "--dtype", "bfloat16", "--device", "cpu") == 0
    assert loaded[0]["dtype"] == torch.bfloat16
    assert loaded[0]["device"] == torch.device("cpu")
    assert calls[0].pipeline.unet.dtype == calls[0].pipeline.vae.dtype == torch.bfloat16


def test_prompt_of_a_batch_entry_wins(infer, calls, media, tmp_path):
    entry = {"ref": str(media / "ref.png"), "drive": str(media / "driving.npz")}
    pairs = [{**entry, "out": "a.mp4", "prompt": "one"}, {**entry, "out": "b.mp4"}, {**entry, "out": "c", "prompt": ""}]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    assert infer("--batch", "pairs.json", "--prompt", "for all") == 0
    assert [call.options["prompt"] for call in calls] == ["one", "for all", ""]


# Sound


def loudness(path: Path) -> np.ndarray:
    """Largest sample of each 20 ms of the file's sound."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        samples = np.concatenate([np.abs(frame.to_ndarray()).max(axis=0) for frame in container.decode(audio=0)])
    step = rate // 50
    return samples[: len(samples) // step * step].reshape(-1, step).max(axis=1)


@pytest.mark.long
def test_sound_is_kept_unless_told_otherwise(infer, tmp_path):
    """A click at 0.2 s of the driving video is at 0.2 s of the result, and of the side-by-side video."""
    driving = encode_sound(tmp_path / "driving.mp4", seconds=0.6, click=0.2)
    drive = ("--drive", driving, "--drive-kind", "pose", "--steps", "1", "--fps", "10")
    assert infer("--out", "loud.mp4", *drive) == 0
    for name in ("loud.mp4", "loud.grid.mp4"):
        info = probe(tmp_path / name)
        assert info.has_audio, name
        assert info.duration == pytest.approx(0.6, abs=0.05)
        sound = loudness(tmp_path / name)
        assert np.argmax(sound) in (9, 10, 11), name
        assert sound.max() > 0.3
        assert len(sound) * 0.02 == pytest.approx(0.6, abs=0.06)
    assert infer("--out", "silent.mp4", *drive, "--no-audio") == 0
    for name in ("silent.mp4", "silent.grid.mp4"):
        assert not probe(tmp_path / name).has_audio, name
    manifests = [json.loads((tmp_path / f"{name}.run.json").read_text()) for name in ("loud", "silent")]
    assert [manifest["config"]["keep_audio"] for manifest in manifests] == [True, False]


def test_whose_sound_is_kept(tmp_path):
    """The driving file's own; a silent pose video takes that of the video it was made from."""
    loud, other = (encode_sound(tmp_path / name, seconds=0.2) for name in ("loud.mp4", "other.mp4"))
    silent = tmp_path / "silent.mp4"
    with VideoWriter(silent, fps=25, size=(64, 128)) as writer:
        for _ in range(5):
            writer.write(np.zeros((64, 128, 3), np.uint8))
    assert open_driving(loud).audio == loud
    assert open_driving(silent).audio is None
    assert open_driving(loud, kind="pose", face_video=other).audio == loud
    assert open_driving(silent, kind="pose", face_video=loud).audio == loud
    assert open_driving(silent, kind="pose", face_video=silent).audio is None


# Files


def test_batch_paths_are_looked_up_beside_the_file_first(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, names in ((here, ("ref.png", "drive.mp4", "face.mp4", "only.png")), (there, ("ref.png", "drive.mp4"))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    (there / "sub").mkdir()
    (there / "sub" / "face.mp4").touch()
    pairs = [
        {"ref": "ref.png", "drive": "drive.mp4", "face_video": "sub/face.mp4", "drive_kind": "pose"},
        {"image_path": "only.png", "target_no_head_poses": "drive.mp4", "target_videos": "face.mp4"},
        {"ref": str(here / "ref.png"), "drive": "nowhere.mp4"},
    ]
    (there / "pairs.json").write_text(json.dumps(pairs))
    monkeypatch.chdir(here)
    first, second, third = read_pairs(there / "pairs.json")
    assert (first["ref"], first["drive"]) == (there / "ref.png", there / "drive.mp4")
    assert first["face_video"] == there / "sub" / "face.mp4"
    assert second["ref"].resolve() == here / "only.png"  # beside the file there is none
    assert second["drive"] == there / "drive.mp4"
    assert second["face_video"].resolve() == here / "face.mp4"
    assert third["ref"] == here / "ref.png"
    assert third["drive"] == Path("nowhere.mp4")


def test_batch_of_another_folder_runs(infer, calls, media, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("ref.png", "driving.npz"):
        shutil.copy(media / name, folder / name)
        (tmp_path / name).write_bytes(b"not what is meant")  # in the current folder
    (folder / "pairs.json").write_text(json.dumps([{"ref": "ref.png", "drive": "driving.npz", "out": "out.mp4"}]))
    assert infer("--batch", folder / "pairs.json") == 0
    assert len(calls) == 1
    assert (tmp_path / "out.mp4").is_file()


def test_converted_official_weights_are_preferred(checkpoint, tmp_path, monkeypatch):
    """Official before tiny; tiny is built only where neither is there; a named folder before both."""
    official, tiny, named = tmp_path / "xdyna", tmp_path / "xdyna-tiny", tmp_path / "mine"
    shutil.copytree(checkpoint, named)
    monkeypatch.setattr(checkpoint_module, "OFFICIAL", official)
    monkeypatch.setattr(checkpoint_module, "TINY", tiny)
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        shutil.copytree(checkpoint, folder)

    assert find_checkpoint(None, build).folder == tiny
    assert find_checkpoint(None, build).folder == tiny
    assert built == [tiny]
    shutil.copytree(checkpoint, official)
    assert find_checkpoint(None, build).folder == official
    shutil.rmtree(tiny)
    assert find_checkpoint(None, build).folder == official
    assert built == [tiny]
    assert find_checkpoint(named, build).folder == named
