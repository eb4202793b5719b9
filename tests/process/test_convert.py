"""`scripts/convert.py` on published files of small sizes, made here."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.process.release import write_initial, write_published
from tests.process.small import SMALL
from xdyna.cli.convert import main
from xdyna.core.program import run
from xdyna.pipelines.folder import find_checkpoint, load_pipeline, save_pipeline
from xdyna.pipelines.untrained import build_pipeline, build_untrained
from xdyna.pipelines.xdyna import XDynaPipeline


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, XDynaPipeline]:
    """A folder arranged as the published release, and the pipeline it was made from."""
    root = tmp_path / "pretrained_weights"
    return root, write_published(root)


def convert(root: Path, *more: str | Path) -> int:
    out = root.parent / "converted"
    arguments = ["--official", root, "--out", out, "--dtype", "float32", "--model", root.parent / "model.yaml", *more]
    return run(main, [str(a) for a in arguments])


def test_converted_folder_computes_the_same(published, capsys):
    root, source = published
    assert convert(root) == 0
    checkpoint = find_checkpoint(root.parent / "converted", lambda _: None)
    assert checkpoint.has_face
    assert checkpoint.size == (32, 32)
    assert not checkpoint.untrained
    ours = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
    # The published sampler preprocesses for CLIP ViT-H (224 px); this encoder is smaller.
    ours.feature_extractor = source.feature_extractor
    rng = np.random.default_rng(0)
    pose, face = (rng.integers(0, 256, (3, 32, 32, c), dtype=np.uint8) for c in (3, 6))
    reference = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    videos = []
    for pipeline in (source, ours):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 2, "output_type": "np"}
        videos.append(pipeline(reference, pose, face, **options, generator=generator).frames)
    np.testing.assert_array_equal(videos[0], videos[1])


def test_face_controlnet_is_optional(published):
    root, _ = published
    shutil.rmtree(root / "controlnet_face")
    assert convert(root) == 0
    assert not find_checkpoint(root.parent / "converted", lambda _: None).has_face


def test_download_then_convert(published, monkeypatch, capsys):
    """The files of the table are fetched first, those that are there are not; then all is converted."""
    root, _ = published
    fetched = []

    def stand_in(file, folder):
        fetched.append(file.name)
        if file.name.endswith("unet-checkpoint-epoch-5.ckpt"):
            file.target(folder).parent.mkdir(parents=True)
            (root / "elsewhere.ckpt").rename(file.target(folder))

    (root / "unet/unet-checkpoint-epoch-5.ckpt").rename(root / "elsewhere.ckpt")
    monkeypatch.setattr("xdyna.pipelines.convert.fetch", stand_in)
    assert convert(root, "--download") == 0
    assert "X-Dyna/unet-checkpoint-epoch-5.ckpt" in fetched
    assert not [name for name in fetched if name.startswith("animatediff")]  # of no use for animation
    out = capsys.readouterr().out
    assert "to download" in out
    assert "X-Dyna/unet-checkpoint-epoch-5.ckpt: UNet with Dynamics-Adapter" in out


def test_initialisation_for_training(published, tmp_path):
    """Stable Diffusion, AnimateDiff, IP-Adapter and ControlNet openpose, each in its place; the adapter silent."""
    root, pipeline = published
    sd15, openpose, motion, tokens = write_initial(root, pipeline)
    numbered = [n.removesuffix(".processor") for n in sd15.attn_processors]
    assert convert(root, "--initial") == 0
    checkpoint = find_checkpoint(root.parent / "converted", lambda _: None)
    made = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
    unet = made.unet.state_dict()
    for name, tensor in sd15.state_dict().items():
        assert torch.equal(unet[name], tensor), name
    for name, tensor in motion.items():
        assert torch.equal(unet[name], tensor), name
    first = next(layer for layer in numbered if layer.endswith("attn2"))
    assert torch.equal(unet[f"{first}.to_k_ip.weight"], tokens[f"{numbered.index(first)}.to_k_ip.weight"])
    assert all(not t.any() for n, t in unet.items() if ".to_out_ff." in n)
    assert all(torch.equal(t, unet[n.replace("to_q_ff", "to_q")]) for n, t in unet.items() if ".to_q_ff." in n)
    assert torch.equal(made.pose_controlnet.state_dict()["conv_in.weight"], openpose.state_dict()["conv_in.weight"])
    assert made.face_controlnet.config.conditioning_channels == 6


def test_missing_files_are_listed(published, capsys):
    root, _ = published
    shutil.rmtree(root / "unet")
    (root / "initialization/IP-Adapter/models/ip-adapter-plus_sd15.bin").unlink()
    assert convert(root) == 2
    err = capsys.readouterr().err
    assert "2 of the published files not found" in err
    assert "--unet" in err
    assert "--ip-adapter" in err
    assert "pretrained/README.md" in err
    assert not (root.parent / "converted").exists()


def test_wrong_architecture_is_explained(published, capsys):
    root, _ = published
    (root.parent / "model.yaml").write_text("unet: {}\n")  # the full size
    shutil.copy(root / "controlnet/controlnet-checkpoint-epoch-5.ckpt", root / "unet/unet-checkpoint-epoch-5.ckpt")
    sizes = {
        "unet": SMALL.unet,
        "controlnet": SMALL.controlnet,
        "resampler": SMALL.resampler,
        "scheduler": SMALL.scheduler,
    }
    (root.parent / "model.yaml").write_text(yaml.safe_dump(sizes))
    assert convert(root) == 1
    err = capsys.readouterr().err
    assert "does not fit XDynaUNet" in err
    assert "missing" in err


def test_nan_and_code_are_refused(published, capsys):
    root, source = published
    path = root / "unet/unet-checkpoint-epoch-5.ckpt"
    state = source.unet.state_dict()
    torch.save({**state, "conv_in.bias": torch.full((8,), float("nan"))}, path)
    assert convert(root) == 1
    assert "NaN or infinity in (1): conv_in.bias" in capsys.readouterr().err
    import os

    class Hostile:
        def __reduce__(self):
            return os.system, ("touch " + str(root / "hacked"),)

    torch.save({"state_dict": Hostile()}, path)
    assert convert(root) == 1
    err = capsys.readouterr().err
    assert "contains code" in err
    assert "nothing of it was run" in err
    assert not (root / "hacked").exists()


@pytest.mark.parametrize("part", ["image_encoder", "text_encoder", "vae"])
@pytest.mark.parametrize("change", ["missing", "nan"])
def test_every_part_is_loaded_strictly(published, capsys, part, change):
    from safetensors.torch import load_file, save_file

    root, _ = published
    path = next(p for p in root.rglob("*.safetensors") if p.parent.name == part)
    state = load_file(path)
    name = sorted(n for n in state if n.endswith("weight"))[0]
    if change == "missing":
        del state[name]
    else:
        state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, path, metadata={"format": "pt"})
    assert convert(root) == 1
    err = capsys.readouterr().err
    assert part in err
    assert ("NaN or infinity" if change == "nan" else name.split(".")[-2]) in err
    assert not (root.parent / "converted").exists()


def test_two_checkpoints_are_not_guessed(published, capsys):
    root, _ = published
    shutil.copy(root / "unet/unet-checkpoint-epoch-5.ckpt", root / "unet/unet-checkpoint-epoch-10.ckpt")
    assert convert(root) == 2
    err = capsys.readouterr().err
    assert "several files that could be the X-Dyna UNet" in err
    assert "name one with --unet" in err
    assert convert(root, "--unet", root / "unet/unet-checkpoint-epoch-5.ckpt") == 0


def test_full_disk_leaves_nothing(published, capsys, monkeypatch):
    root, _ = published

    def full(self, folder, **kwargs):
        Path(folder).mkdir()
        (Path(folder) / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(XDynaPipeline, "save_pretrained", full)
    before = sorted(root.parent.iterdir())
    assert convert(root) == 1
    assert "converted cannot be written" in capsys.readouterr().err
    assert sorted(root.parent.iterdir()) == before


def test_output_is_never_replaced(published, capsys):
    root, _ = published
    (root.parent / "converted").mkdir()
    assert convert(root) == 2
    assert "exists already" in capsys.readouterr().err


def test_tiny(tmp_path):
    """The untrained tiny pipeline: at most 40 MB in float16, and the same bytes from the same seed."""
    for name in ("a", "b"):
        assert run(main, ["--tiny", "--out", str(tmp_path / name)]) == 0
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40e6
    a, b = (find_checkpoint(tmp_path / name, lambda _: None) for name in ("a", "b"))
    assert a.hashes() == b.hashes()
    assert a.untrained
    assert a.size == (128, 128)


def test_rewriting_a_pipeline_keeps_its_sampling_settings(tmp_path: Path) -> None:
    source = tmp_path / "run"
    save_pipeline(build_pipeline(SMALL, seed=0), source)
    (source / "sampling.json").write_text('{"guidance": 1.5}')
    assert run(main, ["--pipeline", str(source), "--out", str(tmp_path / "half"), "--debug"]) == 0
    found = find_checkpoint(tmp_path / "half", build_untrained)
    assert (found.contract.guidance, found.untrained) == (1.5, False)
    assert run(main, ["--pipeline", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
