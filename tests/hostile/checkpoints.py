"""Hostile checkpoints: pipeline folders for infer.py and convert.py, LoRA files, single files of tensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.hostile.case import Case, Place, damaged, link
from tests.hostile.common import infer

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Change = Callable[[Place, Path], None]


def copied(place: Place) -> Path:
    """A copy of the sound pipeline folder."""
    return Path(shutil.copytree(place.shared / "pipeline", place.given / "pipeline"))


def folder_case(name: str, change: Change, *, works: bool = False, program: str = "infer") -> Case:
    """A pipeline folder that `change` spoils."""

    def make(place: Place) -> Sequence[str]:
        folder = copied(place)
        change(place, folder)
        if program == "convert":
            return ["--pipeline", str(folder), "--out", "made", "--dtype", "float32"]
        return infer(place, checkpoint=folder)

    return Case("checkpoint", name, make, program=f"xdyna.cli.{program}", works=works, names="pipeline")


def file_case(name: str, content: Callable[[Place], bytes], *, ending: str = "ckpt") -> Iterator[Case]:
    """One file of tensors, to be read as published weights, and as a LoRA."""

    def make(place: Place) -> Sequence[str]:
        return ["weights", place.put(f"weights.{ending}", content(place))]

    def make_lora(place: Place) -> Sequence[str]:
        path = place.put(f"weights.{ending}", content(place))
        return infer(place, f"lora=[{path}]")

    works = (
        "damaged" in name or "path tricks" in name or "two directories" in name
    )  # the reader may not see a changed number; as a LoRA none of them fits
    yield Case("checkpoint", name, make, program="tests.hostile.entries", works=works, names="weights")
    if "damaged" not in name:
        yield Case("checkpoint", f"LoRA, {name}", make_lora, names="weights")


def header(tensors: dict[str, Any] | str, *, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = (tensors if isinstance(tensors, str) else json.dumps(tensors)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """A header's entry for one tensor."""
    return {"conv_in.bias": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "header of 2^63 bytes": header({}, length=2**63),
    "header of 90 MB declared": header({}, length=90 * 2**20),
    "header cut": header(entry())[:20],
    "no data": header(entry()),
    "offsets reversed": header(entry(offsets=(4, 0)), data=b"\0" * 4),
    "offsets negative": header(entry(offsets=(-4, 4)), data=b"\0" * 4),
    "offsets as text": header(entry(offsets=("0", "4")), data=b"\0" * 4),
    "offset NaN": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, NaN]}}', data=b"\0" * 4),
    "offset 1e400": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}', data=b"\0" * 4),
    "offsets missing": header({"a": {"dtype": "F32", "shape": [1]}}),
    "overlapping": header({"a": entry()["conv_in.bias"], "b": entry()["conv_in.bias"]}, data=b"\0" * 4),
    "shape of 2^60": header(entry(shape=(2**60,)), data=b"\0" * 4),
    "shape overflows": header(entry(shape=(2**40, 2**40)), data=b"\0" * 4),
    "shape negative": header(entry(shape=(-1,)), data=b"\0" * 4),
    "unknown dtype": header(entry(dtype="F33"), data=b"\0" * 4),
    "dtype as number": header(entry(dtype=7), data=b"\0" * 4),
    "nested 100,000 deep": header("[" * 100_000),
    "nested objects": header('{"a":' * 50_000),
    "a list": header("[1, 2]"),
    "not UTF-8": struct.pack("<Q", 4) + b"{\xff\xfe}",
    "1 GB of names declared": header(entry(), length=2**30),
    "names with path tricks": header({"../../etc/passwd": entry()["conv_in.bias"]}, data=b"\0" * 4),
    "a number of 100,000 digits": header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + "9" * 100_000 + "]}}"),
}  # fmt: skip


class _Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def code(place: Place, kind: str) -> bytes:
    """A pickle that would make the canary."""
    command = f"touch '{place.canary}'"
    calls = {
        "os.system": _Runs(os.system, command),
        "eval": _Runs(eval, f"open({str(place.canary)!r}, 'w')"),
        "exec": _Runs(exec, f"open({str(place.canary)!r}, 'w')"),
        "open": _Runs(open, str(place.canary), "w"),
        "bytearray of 100 GB": _Runs(bytearray, 10**11),
        "torch.load": _Runs(torch.load, str(place.secret / "word.txt")),
    }
    return pickle.dumps({"conv_in.weight": calls[kind]}, protocol=2)


def torch_zip(pickled: bytes, *, extra: dict[str, bytes] | None = None, compressed: bool = False) -> bytes:
    """An archive as torch.save writes it, with this pickle."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return memory.getvalue()


def declared_tensor(place: Place) -> bytes:
    """A tensor of 10^12 numbers over a storage of four."""
    storage = ("storage", torch.FloatStorage, "0", "cpu", 4)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return storage if obj is storage else None

    memory = io.BytesIO()
    rebuild = _Runs(torch._utils._rebuild_tensor_v2, storage, 0, (10**12,), (1,), False, {})
    Pickler(memory, protocol=2).dump({"a": rebuild})
    return torch_zip(memory.getvalue(), extra={"archive/data/0": b"\0" * 16})


def zip_tricks(place: Place, kind: str) -> bytes:
    """Archives that are not what they seem."""
    plain = (place.shared / "unet.ckpt").read_bytes()
    if kind == "bomb":
        return torch_zip(b"\x80\x02]q\x00." + b"\0" * 300_000_000, compressed=True)
    if kind == "names above the folder":
        return torch_zip(pickle.dumps({}), extra={"../../escaped": b"x", "/tmp/xdyna-escaped": b"x"})
    if kind == "no pickle":
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as archive:
            archive.writestr("hello.txt", "hello")
        return memory.getvalue()
    if kind == "TorchScript":
        return torch_zip(b"\x80\x02}.", extra={"archive/code/a.py": b"x", "archive/constants.pkl": b"\x80\x02)."})
    if kind == "two directories":
        return plain + plain[-200:]
    return plain[: len(plain) // 2] + plain[-100:]  # a directory that points elsewhere


def json_change(path: str, change: Callable[[Any], Any]) -> Change:
    """Changes a JSON file of the folder: an object, or a text to put in its place."""

    def work(place: Place, folder: Path) -> None:
        tree = json.loads((folder / path).read_text())
        made = change(tree)
        (folder / path).write_text(made if isinstance(made, str) else json.dumps(made))

    return work


def _with(**values: Any) -> Callable[[Any], Any]:
    return lambda tree: {**tree, **values}


JSONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "index of another library": ("model_index.json", _with(unet=["subprocess", "Popen"])),
    "index of os.system": ("model_index.json", _with(scheduler=["os", "system"])),
    "index of a module of ours": ("model_index.json", _with(unet=["xdyna.core.atomic", "write_file"])),
    "index of no class": ("model_index.json", _with(unet=["xdyna.models.unet", "__doc__"])),
    "index names a module that is not there": ("model_index.json", _with(unet=["xdyna.nowhere", "X"])),
    "index with a part above": ("model_index.json", _with(**{"../../secret": ["diffusers", "UNet2DConditionModel"]})),
    "index with an absolute part": ("model_index.json", _with(**{"/etc": ["diffusers", "UNet2DConditionModel"]})),
    "index with numbers": ("model_index.json", _with(unet=[1, 2])),
    "index with a part more": ("model_index.json", _with(evil=["diffusers", "UNet2DConditionModel"])),
    "index without its class": ("model_index.json", lambda tree: {k: v for k, v in tree.items() if k[0] != "_"}),
    "index without the UNet": ("model_index.json", lambda tree: {k: v for k, v in tree.items() if k != "unet"}),
    "index with null for the UNet": ("model_index.json", _with(unet=[None, None])),
    "index with null for the tokenizer": ("model_index.json", _with(tokenizer=[None, None])),
    "index is a list": ("model_index.json", lambda tree: "[]"),
    "index nested 100,000 deep": ("model_index.json", lambda tree: "[" * 100_000),
    "index is empty": ("model_index.json", lambda tree: ""),
    "index with a trailing comma": ("model_index.json", lambda tree: '{"a": 1,}'),
    "UNet without sizes": ("unet/config.json", lambda tree: {}),
    "UNet of 10^9 channels": ("unet/config.json", _with(block_out_channels=[10**9, 10**9])),
    "UNet of -8 channels": ("unet/config.json", _with(block_out_channels=[-8, 16])),
    "UNet with text for channels": ("unet/config.json", _with(block_out_channels="many")),
    "UNet with 10^6 layers a block": ("unet/config.json", _with(layers_per_block=10**6)),
    "UNet of another class": ("unet/config.json", _with(_class_name="os.system")),
    "UNet with sample_size null": ("unet/config.json", _with(sample_size=None)),
    "UNet with sample_size 10^9": ("unet/config.json", _with(sample_size=[10**9, 10**9])),
    "UNet with motion_max_frames text": ("unet/config.json", _with(motion_max_frames="x")),
    "UNet with motion_max_frames 10^12": ("unet/config.json", _with(motion_max_frames=10**12)),
    "UNet config is a number": ("unet/config.json", lambda tree: "7"),
    "UNet with heads 0": ("unet/config.json", _with(num_attention_heads=0)),
    "VAE without channels": ("vae/config.json", lambda tree: {}),
    "VAE with channels null": ("vae/config.json", _with(block_out_channels=None)),
    "VAE with scaling NaN": ("vae/config.json", lambda tree: json.dumps({**tree, "scaling_factor": float("nan")})),
    "VAE of one level": ("vae/config.json", _with(block_out_channels=[4])),
    "VAE with 40 levels": ("vae/config.json", _with(block_out_channels=[4] * 40)),
    "text encoder with 10^9 words": ("text_encoder/config.json", _with(vocab_size=10**9)),
    "text encoder with remote code": ("text_encoder/config.json", _with(auto_map={"AutoModel": "evil.Evil"})),
    "image encoder of patch size 0": ("image_encoder/config.json", _with(patch_size=0)),
    "scheduler with 10^9 timesteps": ("scheduler/scheduler_config.json", _with(num_train_timesteps=10**9)),
    "scheduler with 0 timesteps": ("scheduler/scheduler_config.json", _with(num_train_timesteps=0)),
    "scheduler with text timesteps": ("scheduler/scheduler_config.json", _with(num_train_timesteps="many")),
    "scheduler with an unknown schedule": ("scheduler/scheduler_config.json", _with(beta_schedule="evil")),
    "scheduler predicts nonsense": ("scheduler/scheduler_config.json", _with(prediction_type="evil")),
    "scheduler is a list": ("scheduler/scheduler_config.json", lambda tree: "[]"),
}  # fmt: skip
CONTRACTS = {
    "contract with guidance NaN": '{"guidance": NaN}',
    "contract with guidance 1e999": '{"guidance": 1e999}',
    "contract with size 0": '{"size": [0, 0]}',
    "contract with size 99,999": '{"size": [99999, 99999]}',
    "contract with size of one": '{"size": [64]}',
    "contract with fps of text": '{"fps": "fast"}',
    "contract with fps of five": '{"fps": [1, 2, 3, 4, 5]}',
    "contract with unknown keys": '{"run": "rm -rf /"}',
    "contract with pose unknown": '{"pose": {"evil": true}}',
    "contract with pose list": '{"pose": [1]}',
    "contract with face list": '{"face": ["patches"]}',
    "contract nested": "[" * 100_000,
    "contract with steps 1e30": '{"steps": 1e30}',
    "contract is text": "hello",
    "contract is null": "null",
    "contract with BOM": "\ufeff{}",
}


def _put(path: str, content: str | bytes) -> Change:
    def work(place: Place, folder: Path) -> None:
        target = folder / path
        target.unlink(missing_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    return work


def _tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    from safetensors.torch import load_file, save_file

    def work(place: Place, folder: Path) -> None:
        state = change(load_file(folder / WEIGHTS))
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return work


def _shards(*names: str) -> Change:
    def work(place: Place, folder: Path) -> None:
        (folder / WEIGHTS).rename(place.given / "outside.safetensors")
        shutil.copy(place.given / "outside.safetensors", place.secret / "outside.safetensors")
        chosen = [name.replace("SECRET", str(place.secret)) for name in names]
        weight_map = {f"tensor.{k}": name for k, name in enumerate(chosen)}
        index = {"metadata": {"total_size": 4}, "weight_map": weight_map}
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    return work


def _module_in(place: Place, folder: Path) -> None:
    """A module beside the weights, as custom components have it."""
    text = f"open({str(place.canary)!r}, 'w')\nclass Evil:\n    pass\n"
    for part in ("scheduler", "unet", "."):
        (folder / part / "evil.py").write_text(text)
    json_change("model_index.json", _with(scheduler=["evil", "Evil"]))(place, folder)


def _remote_code(place: Place, folder: Path) -> None:
    (folder / "text_encoder" / "evil.py").write_text(f"open({str(place.canary)!r}, 'w')\nclass Evil:\n    pass\n")
    json_change("text_encoder/config.json", _with(auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}))(
        place, folder
    )


def _pickle_only(place: Place, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(code(place, "os.system"))


def _pickle_beside(place: Place, folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(code(place, "os.system"))


def _linked(place: Place, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    link(folder / WEIGHTS, place.secret / "word.txt")


def _looped(place: Place, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    link(folder / WEIGHTS, folder / WEIGHTS)


def _fifo(place: Place, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _nan(state: dict[str, Any]) -> dict[str, Any]:
    state["conv_in.bias"][0] = float("nan")
    return state


def cases() -> Iterator[Case]:
    """All of them; those that are damaged at random are numbered."""
    for name, content in HEADERS.items():
        yield folder_case(f"folder, {name}", _put(WEIGHTS, content))
        yield from file_case(f"file, {name}", lambda place, content=content: content, ending="safetensors")
    for name, (path, change) in JSONS.items():
        works = name in ("UNet of another class", "index with a trailing comma", "text encoder with remote code")
        yield folder_case(name, json_change(path, change), works=works or "scheduler" in name)
    for name, text in CONTRACTS.items():  # some programs of Windows begin a text with a BOM
        yield folder_case(name, _put("conditions.json", text), works="BOM" in name)
    yield folder_case("NaN", _tensors(_nan))
    yield folder_case("NaN, repacked", _tensors(_nan), program="convert")
    yield folder_case("whole numbers for weights", _tensors(lambda s: {k: v.to(torch.int8) for k, v in s.items()}),
                      works=True)  # fmt: skip
    yield folder_case(
        "complex weights", _tensors(lambda s: {k: v.to(torch.complex64) for k, v in s.items()}), works=True
    )
    yield folder_case("no tensors", _tensors(lambda s: {}))
    yield folder_case("wrong shapes", _tensors(lambda s: {k: v.reshape(-1).clone() for k, v in s.items()}))
    yield folder_case("shards above the folder", _shards("../../outside.safetensors"))
    yield folder_case("shards of a secret", _shards("SECRET/outside.safetensors"))
    yield folder_case("shards of a word", _shards("SECRET/word.txt"))
    yield folder_case("shards with numbers", _shards("1", "2"))
    yield folder_case("a module beside the weights", _module_in)
    yield folder_case("a module beside the text encoder", _remote_code, works=True)
    yield folder_case("only a pickle", _pickle_only)
    yield folder_case("a pickle beside", _pickle_beside, works=True)
    yield folder_case("a link to a secret", _linked)
    yield folder_case("a link to itself", _looped)
    yield folder_case("a pipe for weights", _fifo)
    for kind in ("os.system", "eval", "exec", "open", "bytearray of 100 GB", "torch.load"):
        yield from file_case(f"code {kind}, old form", lambda place, kind=kind: code(place, kind))
        yield from file_case(f"code {kind}, archive", lambda place, kind=kind: torch_zip(code(place, kind)))
        yield folder_case(f"code {kind}, as safetensors", lambda place, folder, kind=kind: _put(WEIGHTS, code(place, kind))(place, folder))  # fmt: skip
    for kind in ("bomb", "names above the folder", "no pickle", "TorchScript", "two directories", "cut inside"):
        yield from file_case(f"archive, {kind}", lambda place, kind=kind: zip_tricks(place, kind))
    yield from file_case("10^12 numbers over four", declared_tensor)
    for number in range(12):
        for source, ending in (("unet.ckpt", "ckpt"), ("old.ckpt", "pth")):
            yield from file_case(
                f"{source} damaged {number}",
                lambda place, source=source: damaged((place.shared / source).read_bytes(), place.random()),
                ending=ending,
            )
        yield folder_case(
            f"safetensors damaged {number}",
            lambda place, folder: _put(WEIGHTS, damaged((folder / WEIGHTS).read_bytes(), place.random()))(
                place, folder
            ),
            works=True,
        )
