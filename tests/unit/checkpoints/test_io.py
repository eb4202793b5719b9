"""xdyna.checkpoints.io: what is read, what is refused, and what each refusal says."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from xdyna.checkpoints.io import check_finite, check_folder, load_state_dict, load_strict, save_safetensors
from xdyna.core.errors import WeightsError
from xdyna.core.files import file_sha256


class Code:
    """Pickles to a call that leaves a mark when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half(), "n": torch.tensor(7)}


def refused(path: Path, *expected: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load_state_dict(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    for part in expected:
        assert part in text
    return text


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


# Reading


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", ["flat", "state_dict", "prefixed", "both", "extras"])
def test_torch_files(tmp_path: Path, tensors: dict[str, torch.Tensor], form: str, legacy: bool) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    tree = {
        "flat": tensors,
        "state_dict": {"state_dict": tensors},
        "prefixed": prefixed,
        "both": {"state_dict": prefixed},
        "extras": {"state_dict": tensors, "epoch": 5, "global_step": 100},
    }[form]
    path = tmp_path / "a.ckpt"
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    assert same(load_state_dict(path), tensors)


def test_safetensors_whatever_the_name(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in ("a.safetensors", "a.ckpt"):
        safetensors.torch.save_file(tensors, tmp_path / name)
        assert same(load_state_dict(tmp_path / name), tensors)


def test_nested_tensors_are_flattened(tmp_path: Path) -> None:
    torch.save({"image_proj": {"x": torch.zeros(1)}, "ip_adapter": {"1.k": torch.ones(1)}}, tmp_path / "ip.bin")
    assert set(load_state_dict(tmp_path / "ip.bin")) == {"image_proj.x", "ip_adapter.1.k"}


def test_parameters_come_back_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"w": nn.Parameter(torch.ones(2))}, tmp_path / "p.pth")
    assert not load_state_dict(tmp_path / "p.pth")["w"].requires_grad


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    path, mark = tmp_path / "evil.ckpt", tmp_path / "mark"
    torch.save({"a": Code(mark)}, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "contains code", "posix.system", "nothing of it was run", "Expected")
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap works: this is what must not happen
    assert mark.exists()


def test_plain_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    for protocol in (0, 2, 4, 5):
        path, mark = tmp_path / f"evil{protocol}.pkl", tmp_path / "mark"
        path.write_bytes(pickle.dumps(Code(mark), protocol=protocol))
        refused(path)
        assert not mark.exists()


def test_whole_modules_and_torchscript_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "contains code", "torch.nn.modules.linear.Linear")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    refused(tmp_path / "s.pt", "TorchScript")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.99])
def test_truncated(tmp_path: Path, kind: str, keep: float) -> None:
    path, tree = tmp_path / "t.ckpt", {f"layer{i}.weight": torch.randn(50) for i in range(20)}
    if kind == "safetensors":
        safetensors.torch.save_file(tree, path)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refused(path, "cut off", "again")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><head></head></html>", "web page"),
        (b"\n  <html>", "web page"),
        (b'{"weight_map": {}}', "JSON file"),
        (b"Entry not found", "text file ('Entry not found')"),
        (bytes(range(1, 200)), "another format"),
        (b"\xff" * 64, "another format"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    refused(path, expected)


def test_other_zip_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("x.txt", "hello")
    refused(tmp_path / "a.ckpt", "is not a torch checkpoint")


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(4)}, path)
    content = path.read_bytes()
    path.write_bytes(content + b"xx")
    refused(path, f"has {len(content) + 2} bytes", f"says {len(content)}")
    path.write_bytes(content[:8] + b"{" * (len(content) - 8))
    refused(path, "damaged header")


def test_missing_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.ckpt", "does not exist")
    refused(tmp_path, "is a folder")


def test_entries_that_are_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.zeros(1), "epoch": 3, "names": ["x"]}, path)
    refused(path, "epoch (int)", "names (list)", "state_dict()")
    torch.save({f"k{i}": i for i in range(25)}, path)
    refused(path, "(25)", "k9 (int), and 15 more")
    torch.save([torch.zeros(1)], path)
    refused(path, "holds a list")
    torch.save({}, path)
    refused(path, "holds no tensors")


def test_mixed_prefixes(tmp_path: Path) -> None:
    torch.save({"module.w": torch.zeros(1), "w": torch.ones(1)}, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", "with and without 'module.'")


# Strict loading


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))


def misfit(module: nn.Module, state: dict[str, torch.Tensor], **options: Any) -> str:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if not tensor.is_meta}
    with pytest.raises(WeightsError) as caught:
        load_strict(module, state, **options)
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "a refused file changed the module"
    return str(caught.value)


def test_load_strict_fills_every_tensor() -> None:
    source, target = net(), net()
    load_strict(target, source.state_dict())
    assert same(dict(target.state_dict()), dict(source.state_dict()))
    target[0].weight.data.zero_()
    assert source[0].weight.abs().sum() > 0, "the module must own its weights"


def test_load_strict_casts_into_the_modules_type() -> None:
    target = net()
    load_strict(target, {name: tensor.half() for name, tensor in net().state_dict().items()})
    assert target[0].weight.dtype == torch.float32


def test_load_strict_onto_meta_takes_the_given_tensors() -> None:
    source = net()
    with torch.device("meta"):
        target = net()
    load_strict(target, source.state_dict())
    assert same(dict(target.state_dict()), dict(source.state_dict()))
    assert isinstance(target[0].weight, nn.Parameter)


def test_missing_unexpected_and_misshaped_are_listed() -> None:
    state = dict(net().state_dict())
    del state["0.bias"]
    state["2.weight"] = torch.zeros(1)
    state["1.bias"] = torch.zeros(3)
    text = misfit(net(), state, what="file x.ckpt")
    assert "file x.ckpt does not fit Sequential (4 tensors expected, 4 given)" in text
    assert "missing (1): 0.bias" in text
    assert "unexpected (1): 2.weight" in text
    assert "wrong shape (1): 1.bias is (3,), expected (2,)" in text


def test_long_lists_are_cut() -> None:
    module = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    text = misfit(module, {"0.weight": torch.zeros(2, 2)})
    assert "missing (23): " in text
    assert ", and 13 more" in text


def test_allowed_names() -> None:
    state = dict(net().state_dict())
    bias = state.pop("0.bias")
    state["extra.pe"] = torch.zeros(1)
    target = net()
    load_strict(target, state, allow_missing=[r"\.bias$"], allow_unexpected=[r"\.pe$"])
    assert torch.equal(target[0].weight, state["0.weight"])
    assert not torch.equal(target[0].bias, bias)
    assert "unexpected (1): extra.pe" in misfit(net(), state, allow_missing=[r"\.bias$"])
    assert "missing (1): 0.bias" in misfit(net(), state, allow_unexpected=[r"\.pe$"])


def test_an_allowed_unexpected_pattern_does_not_drop_wanted_names() -> None:
    source, target = net(), net()
    load_strict(target, source.state_dict(), allow_unexpected=[r"."])
    assert same(dict(target.state_dict()), dict(source.state_dict()))


class Named(nn.Module):
    """A module with the given parameter names and shapes."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *parents, last = name.split(".")
            module: nn.Module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.register_parameter(last, nn.Parameter(torch.zeros(shape)))


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


UNET = {
    "conv_in.weight": (8, 4, 3, 3),
    "down.attn1.to_q.weight": (8, 8),
    "down.attn1.to_q_ff.weight": (8, 8),
    "down.attn2.to_k.weight": (8, 768),
    "down.attn2.to_k_ip.weight": (8, 768),
    "down.motion_modules.0.weight": (8, 8),
}


def without(part: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in UNET.items() if part not in name}


def wider(factor: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(side * factor if side == 8 else side for side in shape) for name, shape in UNET.items()}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (without("motion_modules"), "no motion modules"),
        (without("to_q_ff"), "no Dynamics-Adapter"),
        (without("_ip."), "no image-token weights"),
        (wider(4), "most layers are 4 times as wide"),
        ({f"model.diffusion_model.{name}": (1,) for name in UNET}, "single-file Stable Diffusion"),
        ({f"lora_unet_{name}": (1,) for name in UNET}, "LoRA"),
        ({f"unet.{name}": shape for name, shape in UNET.items()}, "prefix 'unet.'"),
        ({"bert.a": (1,), "bert.b": (2,)}, "no name is the same"),
        ({**UNET, "down.attn2.to_k.weight": (8, 1024), "down.attn2.to_k_ip.weight": (8, 1024)}, "width 1024"),
        ({**UNET, "down.attn1.to_q.weight": (8, 8, 1, 1)}, "1x1 convolution"),
        ({**UNET, "conv_in.weight": (8, 9, 3, 3)}, "another variant of the architecture (1 of 6"),
    ],
)
def test_the_reason_is_guessed(given: dict[str, tuple[int, ...]], reason: str) -> None:
    text = misfit(Named(UNET), zeros(given))
    assert "Probably: " in text
    assert reason in text


def test_controlnet_of_another_condition() -> None:
    shapes = {"controlnet_cond_embedding.conv_in.weight": (16, 6, 3, 3), "mid.weight": (4, 4)}
    state = zeros({**shapes, "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)})
    assert "conditions of 3 channels, expected 6" in misfit(Named(shapes), state)


def test_part_of_a_larger_model() -> None:
    assert "lack the prefix '0.'" in misfit(net(), {"weight": torch.zeros(4, 2), "bias": torch.zeros(4)})


# Finite values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_finite(dtype: torch.dtype, value: float) -> None:
    good = {"a": torch.zeros(5, dtype=dtype), "n": torch.tensor([2**40]), "empty": torch.zeros(0)}
    check_finite(good)
    bad = torch.zeros(5)
    bad[3] = value
    with pytest.raises(WeightsError, match=r"unet: NaN or infinity in \(1\): b\."):
        check_finite({**good, "b": bad.to(dtype)}, what="unet")


def test_check_finite_lists_the_first_names() -> None:
    with pytest.raises(WeightsError, match=r"\(12\): w0, .*, w9, and 2 more"):
        check_finite({f"w{i}": torch.tensor(float("nan")) for i in range(12)})


# Writing


def test_save_and_load(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = save_safetensors(tensors, tmp_path / "new" / "m.safetensors", metadata={"made_by": "test"})
    assert same(load_state_dict(path), tensors)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "test"}
    save_safetensors({"x": torch.ones(1)}, path)
    assert set(load_state_dict(path)) == {"x"}
    assert os.listdir(path.parent) == ["m.safetensors"]


def test_save_shared_views_and_transposed(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    path = save_safetensors({"x": x, "same": x, "t": x.T, "row": x[1]}, tmp_path / "m.safetensors")
    loaded = load_state_dict(path)
    assert torch.equal(loaded["same"], x)
    assert torch.equal(loaded["t"], x.T)
    assert torch.equal(loaded["row"], x[1])


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_safetensors({"x": torch.ones(1)}, tmp_path / "m.safetensors")

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("xdyna.checkpoints.io.save_file", full)
    with pytest.raises(WeightsError, match=r"No space left on device.*make room"):
        save_safetensors({"x": torch.zeros(1)}, path)
    assert load_state_dict(path)["x"] == 1
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_full_disk(tmp_path: Path) -> None:
    """The system itself refuses to write more than 64 KiB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(WeightsError, match="make room on the disk"):
            save_safetensors({"x": torch.zeros(2**20)}, tmp_path / "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_targets_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a regular file"):
        save_safetensors({"x": torch.zeros(1)}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        save_safetensors({"x": torch.zeros(1)}, tmp_path / "file" / "m.safetensors")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(10_000_000))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# Pipeline folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete small pipeline folder: plain and sharded weights, scheduler, tokenizer, processor, an absent part."""
    parts = {
        "unet": ["xdyna.models.unet", "XDynaUNet"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "feature_extractor": ["transformers", "CLIPImageProcessorPil"],
        "face_controlnet": [None, None],
    }
    for name in parts:
        if name != "face_controlnet":
            (tmp_path / name).mkdir()
    index = {"_class_name": "XDynaPipeline", "_diffusers_version": "0", **parts, "flag": True}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name in ("unet", "text_encoder", "vae"):
        (tmp_path / name / "config.json").write_text("{}")
    save_safetensors({"a": torch.zeros(8)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_safetensors({"a": torch.zeros(8)}, tmp_path / "text_encoder" / "model.safetensors")
    for shard in ("s1", "s2"):
        save_safetensors({shard: torch.zeros(8)}, tmp_path / "vae" / f"{shard}.safetensors")
    weight_map = {"weight_map": {"s1": "s1.safetensors", "s2": "s2.safetensors"}}
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(weight_map))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    (tmp_path / "tokenizer" / "merges.txt").write_text("")
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    return tmp_path


def incomplete(folder: Path, *expected: str) -> None:
    with pytest.raises(WeightsError) as caught:
        check_folder(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "scripts/convert.py" in text
    for part in expected:
        assert part in text


def test_complete_folder(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in check_folder(folder)]
    assert names == [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/s1.safetensors",
        "vae/s2.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet/ has no weights"),
        ("unet/config.json", "unet/config.json missing"),
        ("vae/s2.safetensors", "vae/s2.safetensors missing"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json missing"),
        ("tokenizer/merges.txt", "tokenizer/ lacks tokenizer.json or vocab.json + merges.txt"),
        ("feature_extractor/preprocessor_config.json", "feature_extractor/ lacks preprocessor_config.json"),
    ],
)
def test_every_missing_file_is_named(folder: Path, name: str, expected: str) -> None:
    (folder / name).unlink()
    incomplete(folder, "(1): " + expected)


def test_everything_wrong_is_listed_at_once(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    path = folder / "vae" / "s1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    (folder / "tokenizer").rmdir()
    incomplete(
        folder,
        "(5): ",
        "only a pickle (diffusion_pytorch_model.bin)",
        "git-lfs pointer",
        "vae/s1.safetensors is cut off",
        "scheduler_config.json is not valid JSON",
        "tokenizer/ missing",
    )


def test_pickle_under_a_safetensors_name(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    incomplete(folder, "is a pickle, expected safetensors")


def test_not_a_pipeline_folder(tmp_path: Path) -> None:
    incomplete(tmp_path, "model_index.json missing")
    incomplete(tmp_path / "none", "does not exist")
    (tmp_path / "model_index.json").write_text("[]")
    incomplete(tmp_path, "holds a list")
    incomplete(tmp_path / "model_index.json", "is a file")
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers"]}')
    incomplete(tmp_path, "expected [library, class]")


def test_a_safetensors_file_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    """The header's length is the file's first number; its low byte may be 0x80, which also begins a pickle."""
    path = tmp_path / "model.safetensors"
    for extra in range(4096):
        safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata={"note": "x" * extra})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(load_state_dict(path)["weight"], torch.ones(3))
