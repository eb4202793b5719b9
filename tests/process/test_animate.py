"""The library: `xdyna.animate`, its steps by themselves, what comes back, and how it is cancelled."""

import dataclasses
import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from PIL import Image

import xdyna
from tests.process.small import SMALL, standing_figure
from xdyna.config.infer import InferConfig
from xdyna.core.errors import FileError, UsageError
from xdyna.core.files import file_sha256
from xdyna.core.progress import CancelledError, Watch
from xdyna.media.image import read_image
from xdyna.media.video import read_frames
from xdyna.perception.types import PoseTrack
from xdyna.pipelines import animate as animate_module
from xdyna.pipelines.attention import measurements
from xdyna.pipelines.controls import perceive, prepare
from xdyna.pipelines.model import parse_lora
from xdyna.pipelines.plan import Request, plan_animation

QUICK = InferConfig(steps=2)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))


def _listen(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """What an animation tells goes to `said`, instead of its notes."""
    monkeypatch.setattr(
        animate_module, "Watch", lambda progress, cancel, tell, show: Watch(progress, cancel, said.append, show)
    )


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, xdyna; print([m for m in ('torch', 'diffusers', 'cv2', 'numpy', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there() -> None:
    for name in xdyna.__all__:
        assert getattr(xdyna, name).__name__ == name
    assert set(xdyna.__all__) <= set(dir(xdyna))
    with pytest.raises(AttributeError, match="no attribute 'animated'"):
        xdyna.animated  # noqa: B018


def test_it_gives_the_bytes_of_the_program(infer, checkpoint, media, tmp_path) -> None:
    assert infer("--out", "program.mp4") == 0
    made = xdyna.animate(media / "ref.png", media / "driving.npz", out="library.mp4", settings=QUICK, model=checkpoint)
    assert made.path == Path("library.mp4")
    assert made.path.read_bytes() == Path("program.mp4").read_bytes()
    assert made.manifest["conditions"]
    assert [path.name for path in made.written] == [
        "library.mp4", "library.grid.mp4", "library.sheet.png", "library.run.json",
    ]  # fmt: skip


def test_frames_are_read_back(checkpoint, media) -> None:
    made = xdyna.animate(media / "ref.png", media / "driving.npz", out="a.mp4", settings=QUICK, model=checkpoint)
    decoded = list(read_frames(made.path))
    assert len(made.frames) == 7
    for number, frame in enumerate(made.frames):
        np.testing.assert_array_equal(frame, decoded[number])
    np.testing.assert_array_equal(made.frames[-1], decoded[6])
    np.testing.assert_array_equal(np.stack(made.frames[5:1:-2]), np.stack([decoded[5], decoded[3]]))
    np.testing.assert_array_equal(made.frames.numpy(), np.stack(decoded))
    with pytest.raises(IndexError):
        made.frames[7]


def test_without_a_name_it_is_temporary_until_it_is_saved(checkpoint, media, tmp_path) -> None:
    reference = read_image(media / "ref.png")
    track = PoseTrack.load(media / "driving.npz")
    made = xdyna.animate(Image.fromarray(reference), track, settings=QUICK, model=checkpoint)
    first, content = made.path, made.path.read_bytes()
    named = xdyna.animate(media / "ref.png", media / "driving.npz", out="named.mp4", settings=QUICK, model=checkpoint)
    assert named.path.read_bytes() == content
    with pytest.raises(FileError, match=r"named\.mp4 exists already"):
        made.save("named.mp4")
    assert made.save("mine/saved") == Path("mine/saved.mp4")
    assert Path("mine/saved.mp4").read_bytes() == content
    assert sorted(path.name for path in Path("mine").iterdir()) == [
        "saved.grid.mp4", "saved.mp4", "saved.run.json", "saved.sheet.png",
    ]  # fmt: skip
    stored = json.loads(Path("mine/saved.run.json").read_text())
    assert list(stored["outputs"]) == ["saved.mp4", "saved.grid.mp4", "saved.sheet.png"]
    assert stored["outputs"] == made.manifest["outputs"] == {
        path.name: file_sha256(path) for path in made.written[:-1]
    }  # fmt: skip
    assert not first.exists()
    assert not first.parent.exists()
    assert len(made.frames) == 7


def test_progress_and_cancelling(checkpoint, media) -> None:
    settings = InferConfig(steps=4)
    files = (media / "ref.png", media / "driving.npz")
    whole = xdyna.animate(*files, out="whole.mp4", settings=settings, model=checkpoint)
    seen: list[tuple[str, int, int]] = []

    def stop_in_the_third_window() -> bool:
        return seen[-1] == ("denoising", 2, 4)

    with pytest.raises(CancelledError, match="cancelled while denoising"):
        xdyna.animate(
            *files, out="cut.mp4", settings=settings, model=checkpoint,
            progress=lambda *step: seen.append(step), cancel=stop_in_the_third_window,
        )  # fmt: skip
    assert not Path("cut.mp4").exists()
    seen.clear()
    again = xdyna.animate(
        *files, out="cut.mp4", settings=settings, model=checkpoint, progress=lambda *step: seen.append(step)
    )
    # The first step was finished and is not done again; the second had its window, but was not taken.
    assert [step for step in seen if step[0] == "denoising"] == [("denoising", n, 3) for n in range(4)]
    assert [step[1:] for step in seen if step[0] == "decoding"] == [(n, 7) for n in range(1, 8)]
    assert any("going on after step" in note for note in again.notes)
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_each_step_by_itself(checkpoint, media) -> None:
    model = xdyna.load(checkpoint, QUICK)
    plan = plan_animation(Request(media / "ref.png", media / "driving.npz"), QUICK, model.checkpoint)
    track = perceive(plan)
    controls = prepare(track, plan)
    assert controls.pose.shape == (7, 32, 32, 3)
    np.testing.assert_array_equal(track.body, standing_figure(frames=7).body)
    video = model.pipeline(
        plan.fitted(), controls.pose, num_inference_steps=2, guidance_scale=1.0, output_type="pil",
        generator=torch.Generator().manual_seed(0),
    ).frames[0]  # fmt: skip
    assert [frame.size for frame in video] == [(32, 32)] * 7


@pytest.mark.long
def test_another_scheduler(checkpoint, media) -> None:
    settings = dataclasses.replace(QUICK, scheduler="unipc")
    model = xdyna.load(checkpoint, settings)
    assert isinstance(model.pipeline.scheduler, UniPCMultistepScheduler)
    assert model.pipeline.scheduler.config.beta_schedule == SMALL.scheduler["beta_schedule"]
    files = (media / "ref.png", media / "driving.npz")
    other = xdyna.animate(*files, out="unipc.mp4", settings=settings, model=model)
    ddim = xdyna.animate(*files, out="ddim.mp4", settings=QUICK, model=checkpoint)
    assert other.path.read_bytes() != ddim.path.read_bytes()
    with pytest.raises(UsageError, match="did you mean dpmsolver"):
        xdyna.load(checkpoint, dataclasses.replace(QUICK, scheduler="dpmsolver"))
    with pytest.raises(UsageError, match="scheduler=UNet2DModel: unknown"):
        xdyna.load(checkpoint, dataclasses.replace(QUICK, scheduler="UNet2DModel"))


def test_settings_are_those_of_the_model_and_do_not_contradict_it(checkpoint, media) -> None:
    files = (media / "ref.png", str(media / "driving.npz"))
    model = xdyna.load(checkpoint, QUICK)
    made = xdyna.animate(*files, out="own.mp4", model=model)
    assert made.manifest["config"]["steps"] == 2
    other = dataclasses.replace(QUICK, scheduler="unipc")
    with pytest.raises(UsageError, match=r"scheduler='unipc' is asked for, but the model was made with None"):
        xdyna.animate(*files, out="other.mp4", model=model, settings=other)
    with pytest.raises(UsageError, match=r"lora=\['a.safetensors'\] is asked for"):
        xdyna.animate(*files, model=model, settings=dataclasses.replace(QUICK, lora=["a.safetensors"]))
    assert not Path("other.mp4").exists()


def test_a_loaded_pipeline_is_used_as_it_is(checkpoint, media) -> None:
    """The folder's bytes; what the caller changed in memory counts, and is told by the manifest."""
    files = (media / "ref.png", media / "driving.npz")
    named = xdyna.animate(*files, out="named.mp4", settings=QUICK, model=checkpoint)
    pipeline = xdyna.XDynaPipeline.from_pretrained(checkpoint)
    made = xdyna.animate(*files, out="made.mp4", settings=QUICK, model=pipeline)
    assert made.path.read_bytes() == named.path.read_bytes()
    for entry in ("checkpoint", "device", "config"):
        assert made.manifest[entry] == named.manifest[entry]
    copied = DiffusionPipeline.from_pretrained(  # makes a class of its own from the file
        checkpoint, custom_pipeline=inspect.getfile(xdyna.XDynaPipeline), trust_remote_code=True
    )
    again = xdyna.animate(*files, out="again.mp4", settings=QUICK, model=copied)
    assert again.path.read_bytes() == named.path.read_bytes()
    assert again.manifest["weights"] == made.manifest["weights"]
    with torch.no_grad():
        pipeline.unet.conv_out.bias += 0.1
    weights = xdyna.animate(*files, out="weights.mp4", settings=QUICK, model=pipeline)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    steps = xdyna.animate(*files, out="steps.mp4", settings=QUICK, model=pipeline)
    assert len({one.path.read_bytes() for one in (made, weights, steps)}) == 3
    told = [one.manifest["weights"] for one in (made, weights, steps)]
    assert [{name for name in told[0] if told[0][name] != other[name]} for other in told[1:]] == [
        {"unet"}, {"unet", "scheduler"},
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"set pipeline\.scheduler"):
        xdyna.animate(*files, model=pipeline, settings=dataclasses.replace(QUICK, scheduler="unipc"))
    with pytest.raises(UsageError, match="the model is a UniPCMultistepScheduler; expected a pipeline folder"):
        xdyna.animate(*files, model=pipeline.scheduler)


@pytest.mark.parametrize(("out", "kept"), [("named.mp4", True), (None, False)])
def test_what_is_cancelled_is_kept_where_it_has_a_name(checkpoint, media, monkeypatch, out, kept) -> None:
    """Temporary files are gone afterwards: nothing is said to have been kept."""
    said: list[str] = []
    seen: list[tuple[str, int, int]] = []
    _listen(monkeypatch, said)
    with pytest.raises(CancelledError):
        xdyna.animate(
            media / "ref.png", media / "driving.npz", out=out, settings=InferConfig(steps=3), model=checkpoint,
            progress=lambda *step: seen.append(step), cancel=lambda: seen[-1] == ("denoising", 2, 3),
        )  # fmt: skip
    assert any("partial result kept" in note for note in said) == kept


def test_an_event_cancels(checkpoint, media) -> None:
    event = threading.Event()
    files = (media / "ref.png", media / "driving.npz")
    with pytest.raises(CancelledError):
        xdyna.animate(
            *files, out="e.mp4", settings=QUICK, model=checkpoint, cancel=event, progress=lambda *_: event.set()
        )
    assert not Path("e.mp4").exists()


def test_names_of_lora_files(tmp_path: Path) -> None:
    path = tmp_path / "a:1.safetensors"
    path.write_bytes(b"x")
    assert parse_lora(str(path)) == (path, 1.0)
    assert parse_lora(f"{path}:0.5") == (path, 0.5)
    with pytest.raises(UsageError, match="'half' is no number"):
        parse_lora(f"{path}:half")
    with pytest.raises(UsageError, match=r"no such file .*b\.safetensors"):
        parse_lora(str(tmp_path / "b.safetensors:0.5"))


def test_lora_by_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of training, or a name of pretrained/; a file that is here goes first."""
    monkeypatch.setattr("xdyna.pipelines.model.pretrained", lambda name: tmp_path / "shipped" / name)
    monkeypatch.chdir(tmp_path)
    for folder in ("shipped/quick", "final"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lora.safetensors").touch()
    assert parse_lora("final:0.5") == (Path("final/lora.safetensors"), 0.5)
    assert parse_lora("quick") == (tmp_path / "shipped" / "quick" / "lora.safetensors", 1.0)
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "lora.safetensors").touch()
    assert parse_lora("quick:2") == (Path("quick/lora.safetensors"), 2.0)
    with pytest.raises(UsageError, match="no such file slow"):
        parse_lora("slow")


def test_an_interrupted_run_keeps_its_attention_kernels(checkpoint, media, monkeypatch) -> None:
    """What is remembered for the device may change in between; the manifest says what was used."""
    files, seen, said = (media / "ref.png", media / "driving.npz"), [], []
    _listen(monkeypatch, said)

    def animate(out: str, **options) -> xdyna.Animation:
        settings = InferConfig(steps=3, attention="auto")
        return xdyna.animate(*files, out=out, settings=settings, model=checkpoint, **options)

    def interrupt(out: str) -> None:
        seen.clear()
        with pytest.raises(CancelledError):
            animate(out, progress=lambda *s: seen.append(s), cancel=lambda: seen[-1] == ("denoising", 2, 3))

    undisturbed = animate("whole.mp4")
    assert set(undisturbed.manifest["attention"].values()) == {"native"}
    interrupt("kept.mp4")
    interrupt("over.mp4")
    memory = measurements()
    memory.write_text(memory.read_text().replace('"kernel": "native"', '"kernel": "native_math"'))
    kept = animate("kept.mp4")
    assert any("going on after step" in note for note in said)
    assert kept.manifest["attention"] == undisturbed.manifest["attention"]
    assert kept.path.read_bytes() == undisturbed.path.read_bytes()

    state = Path("over.partial/state.json")
    state.write_text(state.read_text().replace('"native"', '"sage"'))  # which is not here
    said.clear()
    over = animate("over.mp4")
    assert not any("going on" in note for note in said)
    assert any("begun with attention" in note and "the run starts over" in note for note in said)
    assert set(over.manifest["attention"].values()) == {"native_math"}
    assert json.loads(Path("over.run.json").read_text())["attention"] == over.manifest["attention"]


def test_a_kernel_that_is_not_here_is_said_before_anything_is_read(infer, capsys) -> None:
    assert infer("--ref", "none.png", "attention=sage") == 2
    assert "attention=sage was asked for, but the package sageattention is not installed" in capsys.readouterr().err
