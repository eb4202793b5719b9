"""What a user gets for input that cannot work, and that odd input which can work does.

`pytest tests/process/test_bad_input.py -rP` prints every message.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from xdyna.media.video import VideoWriter, probe

Infer = Callable[..., int]
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "infer.py"


@pytest.fixture
def fails(infer: Infer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs infer.py, expects an exit code and one message without traceback, and no output. Returns the message."""

    def check(code: int, *arguments: str | Path) -> str:
        capsys.readouterr()
        assert infer(*arguments) == code
        message = capsys.readouterr().err.strip().splitlines()[-1]
        print(message)
        assert "Traceback" not in message
        assert "unexpected error" not in message
        assert not list(tmp_path.rglob("*.run.json"))
        assert not list(tmp_path.rglob("*.part*"))
        return message

    return check


def person_video(path: Path, *, frames: int = 4, empty: tuple[int, ...] = (), fps: int = 8) -> Path:
    """A real person (a NASA portrait that scikit-image ships), moving a little; frames in `empty` are grey."""
    pytest.importorskip("mediapipe")
    data = pytest.importorskip("skimage.data")
    portrait = np.asarray(Image.fromarray(data.astronaut()).resize((256, 256)))
    with VideoWriter(path, fps=fps, size=(256, 256)) as writer:
        for i in range(frames):
            writer.write(np.full_like(portrait, 128) if i in empty else np.roll(portrait, 2 * i, axis=1))
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


# --- reference ----------------------------------------------------------------------------------------------------


def test_reference_missing(fails):
    assert "no such file" in fails(2, "--ref", "nobody.jpg")


@pytest.mark.parametrize("content", [b"", b"just a text", b"\x89PNG\r\n\x1a\n cut"], ids=["empty", "text", "truncated"])
def test_reference_not_a_image(fails, tmp_path, content):
    (tmp_path / "ref.jpg").write_bytes(content)
    assert "ref.jpg" in fails(1, "--ref", "ref.jpg")


def test_reference_one_pixel(fails, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "ref.png")
    assert "1 x 1" in fails(1, "--ref", "ref.png").replace("1x1", "1 x 1")


@pytest.mark.parametrize("kind", ["alpha", "cmyk", "exif", "grey"])
def test_odd_references_work(infer, media, tmp_path, kind):
    image = Image.open(media / "ref.png").convert("RGB")
    options = {}
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        image, options = image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
    mode = {"alpha": "RGBA", "cmyk": "CMYK", "grey": "L", "exif": "RGB"}[kind]
    name = "ref.png" if kind == "alpha" else "ref.jpg"
    image.convert(mode).save(tmp_path / name, **options)
    assert infer("--ref", name, "--out", "out.mp4") == 0
    assert (tmp_path / "out.sheet.png").exists()


@pytest.mark.long
def test_huge_reference_works(infer, tmp_path):
    Image.new("L", (12_000, 12_000), 90).save(tmp_path / "huge.png")
    assert infer("--ref", "huge.png", "--out", "out.mp4") == 0


# --- driving ------------------------------------------------------------------------------------------------------


def test_driving_missing(fails):
    assert "no such file" in fails(2, "--drive", "nothing.mp4")


@pytest.mark.parametrize("content", [b"", b"not a video at all"], ids=["empty", "text"])
def test_driving_not_a_video(fails, tmp_path, content):
    (tmp_path / "drive.mp4").write_bytes(content)
    assert "drive.mp4" in fails(1, "--drive", "drive.mp4")


def test_driving_without_its_index(fails, media, tmp_path):
    content = (media / "poses.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[:200])
    assert "cut.mp4" in fails(1, "--drive", "cut.mp4", "--drive-kind", "pose")


def test_driving_sound_only(fails, tmp_path):
    assert "sound" in fails(1, "--drive", sound_only(tmp_path / "song.m4a"))


@pytest.mark.usefixtures("detector")
def test_nobody_in_any_frame(fails, tmp_path):
    person_video(tmp_path / "empty.mp4", empty=(0, 1, 2, 3))
    message = fails(1, "--drive", "empty.mp4")
    assert "no" in message.lower()
    assert "4 frames" in message


@pytest.mark.usefixtures("detector")
def test_nobody_in_some_frames_is_filled_and_counted(infer, tmp_path, capsys):
    person_video(tmp_path / "some.mp4", frames=5, empty=(2,))
    assert infer("--drive", "some.mp4", "--out", "out.mp4") == 0
    assert "person found in 4 of 5 frames, 1 filled from their neighbours" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out.run.json").read_text())
    assert manifest["perception"]["filled"] == 1
    # The keypoints that were written drive another run, without any detection.
    assert infer("--drive", "out.keypoints.npz", "--out", "again.mp4") == 0
    assert probe(tmp_path / "again.mp4").frame_count == 5


@pytest.mark.usefixtures("detector")
def test_one_frame(infer, tmp_path):
    person_video(tmp_path / "one.mp4", frames=1)
    assert infer("--drive", "one.mp4", "--out", "out.mp4") == 0
    assert probe(tmp_path / "out.mp4").frame_count == 1


@pytest.mark.usefixtures("detector")
def test_person_who_is_not_there(fails, tmp_path):
    person_video(tmp_path / "one.mp4", frames=1)
    assert "person" in fails(1, "--drive", "one.mp4", "--person", "3")


def test_variable_frame_rate_keeps_the_duration(infer, media, tmp_path):
    with av.open(str(tmp_path / "vfr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for pts in (0, 100, 150, 500, 900):
            frame = av.VideoFrame.from_ndarray(np.full((96, 64, 3), pts % 200, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    duration = probe(tmp_path / "vfr.mp4").duration
    assert infer("--drive", "vfr.mp4", "--drive-kind", "pose", "--fps", "10", "--out", "out.mp4") == 0
    assert probe(tmp_path / "out.mp4").duration == pytest.approx(duration, abs=0.06)


@pytest.mark.parametrize("change", ["truncated", "text", "missing key", "nan"])
def test_damaged_keypoints(fails, media, tmp_path, change):
    with np.load(media / "driving.npz") as file:
        arrays = dict(file)
    if change == "missing key":
        del arrays["body"]
    if change == "nan":
        arrays["body"][0, 0, 0] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    content = (tmp_path / "bad.npz").read_bytes()
    if change in ("truncated", "text"):
        (tmp_path / "bad.npz").write_bytes(content[: len(content) // 2] if change == "truncated" else b"text")
    assert "bad.npz" in fails(1, "--drive", "bad.npz")


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100x64"], "nearest valid: 96x64 or 104x64"),
        (["--size", "0x64"], "multiples of 8"),
        (["--size", "big"], "for example 896x512"),
        (["--steps", "0"], "steps"),
        (["--fps", "10", "--stride", "2"], "contradict"),
        (["--frames", "0"], "frames"),
        (["--device", "tpu"], "device"),
        (["--dtype", "float16", "--device", "cpu"], "float16 does not run on the CPU"),
        (["--dtype", "int8"], "dtype"),
        (["--context-schedule", "round"], "uniform"),
        (["--pose-backend", "openpose"], "mediapipe"),
        (["--face"], "holds no faces"),
        (["--config", "missing.yaml"], "choose a config by its group"),
        (["--config-dir", "missing"], "--config-dir missing: no such folder"),
        (["preset=quick"], "preset=quick: there is no config preset/quick"),
        (["--cfg", "jobs"], "guidance: got 'jobs', expected a number"),
        (["steps"], "expected key=value"),
        (["--batch", "missing.json"], "no such file"),
        (["--checkpoint", "nowhere"], "no such folder"),
    ],
)
def test_wrong_options(fails, options, message):
    assert message in fails(2, *options)


def test_unknown_key_in_config(fails, tmp_path):
    (tmp_path / "own" / "preset").mkdir(parents=True)
    (tmp_path / "own" / "preset" / "my.yaml").write_text("# @package _global_\nstepz: 3\n")
    message = fails(2, "--config-dir", "own", "preset=my")
    assert "stepz" in message
    assert "steps" in message.replace("stepz", "")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '[{"ref": "a.png"}]', '[{"ref": "a", "drive": "b", "frames": 3}]'])
def test_bad_batch_files(fails, tmp_path, text):
    (tmp_path / "pairs.json").write_text(text)
    assert "pairs.json" in fails(2, "--batch", "pairs.json")


# --- checkpoint ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path / "copied")
    return tmp_path / "copied"


def test_checkpoint_incomplete(fails, copied):
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(copied / "tokenizer")
    message = fails(1, "--checkpoint", copied)
    assert "vae" in message
    assert "tokenizer" in message


def test_checkpoint_is_another_pipeline(fails, copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    assert "holds a StableDiffusionPipeline, expected an XDynaPipeline" in fails(1, "--checkpoint", copied)


@pytest.mark.parametrize("change", ["sizes", "missing", "unexpected"])
def test_checkpoint_weights_do_not_fit(fails, copied, change):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    if change == "sizes":
        state["conv_in.weight"] = torch.zeros(16, 4, 3, 3)
    elif change == "missing":
        del state["conv_in.weight"]
    else:
        state["conv_inn.weight"] = torch.zeros(1)
    save_file(state, path, metadata={"format": "pt"})
    message = fails(1, "--checkpoint", copied)
    assert "unet" in message
    assert "conv_in" in message


def test_checkpoint_with_nan(fails, copied):
    path = copied / "pose_controlnet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.bias"][0] = float("nan")
    save_file(state, path, metadata={"format": "pt"})
    message = fails(1, "--checkpoint", copied)
    assert "NaN or infinity in (1): conv_in.bias" in message


def test_checkpoint_with_code(fails, copied):
    class Hostile:
        def __reduce__(self):
            return os.system, ("touch " + str(copied / "hacked"),)

    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Hostile(), copied / "unet" / "diffusion_pytorch_model.bin")
    fails(1, "--checkpoint", copied)
    index = json.loads((copied / "model_index.json").read_text())
    index["unet"] = ["os", "system"]
    (copied / "model_index.json").write_text(json.dumps(index))
    fails(1, "--checkpoint", copied)
    assert not (copied / "hacked").exists()


def test_checkpoint_naming_another_library(fails, copied):
    index = json.loads((copied / "model_index.json").read_text())
    index["unet"] = ["subprocess", "Popen"]
    (copied / "model_index.json").write_text(json.dumps(index))
    assert "names the library 'subprocess', which is not used by xdyna" in fails(1, "--checkpoint", copied)


# --- output -------------------------------------------------------------------------------------------------------


def test_output_folder_cannot_be_made(infer, capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        infer("--out", "file/out.mp4")
    assert ended.value.code == 2
    assert "output 'file/out.mp4' cannot be written: 'file' is a file, not a folder" in capsys.readouterr().err


def test_output_folder_cannot_be_written(fails):
    assert "/proc" in fails(1, "--out", "/proc/out.mp4")


def test_output_is_a_folder(fails, tmp_path):
    (tmp_path / "out.mp4").mkdir()
    assert "'out.mp4' is a folder; give a file name" in fails(2, "--out", "out.mp4")
    assert "is a folder" in fails(2, "--out", ".")


@pytest.mark.long
def test_full_disk(checkpoint, media, tmp_path):
    """A limit on the size of files stands for a full disk: a message, and nothing under the final names."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, SCRIPT, "--ref", media / "ref.png", "--drive", media / "driving.npz", "--steps", "1"]
    command += ["--checkpoint", checkpoint, "--out", tmp_path / "out.mp4", "--size", "192x128"]
    done = subprocess.run([str(c) for c in command], preexec_fn=limited, capture_output=True, text=True, check=False)
    message = done.stderr.strip().splitlines()[-1]
    print(message)
    assert done.returncode == 1
    assert "out" in message
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
