"""Each line of `xdyna doctor` is made to fail, and says what mends it."""

import builtins
import importlib.machinery
import importlib.metadata
import json
import re
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xdyna.cli.main import main
from xdyna.config.infer import ATTENTION
from xdyna.core.files import file_sha256
from xdyna.core.install import headless_command, install_xdyna, restore_xdyna
from xdyna.core.program import run
from xdyna.core.resources import checkout, resource
from xdyna.pipelines import attention, doctor, mending
from xdyna.pipelines.doctor import CHECKS, Line, _run
from xdyna.pipelines.mending import SYSTEM


def line(name: str) -> Line:
    return _run(name, CHECKS[name])


class Blocker:
    """A meta-path finder for which some packages do not exist."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def blocked(*names: str) -> None:
        monkeypatch.setattr(sys, "meta_path", [Blocker(*names), *sys.meta_path])
        for module in list(sys.modules):
            if module.partition(".")[0] in names:
                monkeypatch.delitem(sys.modules, module)

    return blocked


def test_python(monkeypatch):
    assert line("python").level == "pass"
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    found = line("python")
    assert found.level == "fail"
    assert "xdyna needs 3.11 to 3.14" in found.text
    assert found.mend == "make venv PYTHON=python3.14"


def test_packages(block, monkeypatch):
    assert line("packages").level == "pass"
    block("einops")
    found = line("packages")
    assert found.level == "fail"
    assert found.text == "not installed: einops"
    version = importlib.metadata.version("einops")  # it is there in name, so that plain `pip install` would do nothing
    assert found.mend == f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir einops=={version}"
    hide(monkeypatch, "einops")
    assert line("packages").mend == f'{sys.executable} -m pip install "einops>=0.8"'


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """pip does not know a package."""
    original = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_several_missing_packages_are_installed_by_one_line(block, monkeypatch):
    block("einops", "peft", "tqdm")
    hide(monkeypatch, "einops")
    found = line("packages")
    assert found.text == "not installed: peft, einops, tqdm"
    pip = f"{sys.executable} -m pip install"
    damaged = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in ("peft", "tqdm"))
    assert found.mend == f'{pip} "einops>=0.8" && {pip} --force-reinstall --no-deps --no-cache-dir {damaged}'


def test_a_library_of_a_package_itself(monkeypatch):
    """It comes with its package, not from the system."""
    original = doctor.importlib.import_module

    def broken(name: str, *args: Any) -> Any:
        if name in ("av", "cv2"):
            library = {"av": "libavcodec-d61378e8.so.63.1.102", "cv2": "libGL.so.1"}[name]
            raise ImportError(f"{library}: cannot open shared object file: No such file or directory", name=name)
        return original(name, *args)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    release = importlib.metadata.version("av")
    mend = f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir av=={release}"
    assert line("packages").mend == f"{mend} && {headless_command()}"
    with pytest.raises(ImportError) as caught:
        broken("av")
    for name in ("av._core", "_core", None):  # by who loads it
        caught.value.name = name
        assert mending.mend_import(caught.value) == mend
    assert "--force-reinstall" not in mending.mend_import(ImportError("libother.so: cannot open shared object file"))


def test_broken_packages(monkeypatch):
    original = doctor.importlib.import_module

    def broken(name: str, *args: Any) -> Any:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return original(name, *args)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = line("packages")
    assert found.level == "fail"
    assert "installed but broken: cv2 (libGL.so.1" in found.text
    assert found.mend == headless_command()


def test_what_a_package_itself_asks_for_is_named(monkeypatch):
    """Not the package that was imported, which is there; and what is missing comes before what is broken."""
    original = doctor.importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")
        return original(name, *args)

    monkeypatch.setattr(doctor.importlib, "import_module", missing)
    found = line("packages")
    assert (found.level, found.text) == ("fail", "not installed: tokenizers")
    assert found.mend == mending.install_modules(["tokenizers"])


def test_a_check_without_its_package_says_how_to_get_it(monkeypatch):
    original = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    found = line("torch")
    assert (found.level, found.text) == ("fail", "No module named 'torch'")
    assert found.mend.startswith(f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir torch==")
    hide(monkeypatch, "torch")
    assert line("torch").mend == f'{sys.executable} -m pip install "torch>=2.4"'


def test_a_driver_without_a_build_for_it(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = line("torch")
    assert found.level == "warn"
    assert "a build for CPUs alone" in found.text
    assert "--index-url https://download.pytorch.org/whl/" in found.mend
    monkeypatch.setattr(torch.version, "cuda", "13.0")  # a build for GPUs, none of which is to be had
    assert line("torch").level == "pass"


def test_dtypes_and_attention(monkeypatch):
    assert "float32" in line("dtypes").text
    assert line("attention").level == "pass"
    named = line("attention").text.removeprefix("attention=").partition(" work on ")[0].split(", ")
    assert {"native", "native_math"} <= set(named) <= set(ATTENTION)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: v * 2)
    found = line("attention")
    assert found.level == "fail"
    assert "pip install --force-reinstall torch" in found.mend
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: ones(*args, **kwargs) * 2)
    found = line("dtypes")
    assert found.level == "fail"
    assert "matrix products in float32 are wrong" in found.text


def test_kernels_that_are_wrong_or_fail_are_not_named(monkeypatch):
    original = attention._attend

    def attend(name, group, inputs):
        if name == "flex":
            raise RuntimeError("no such kernel")
        return original(name, group, inputs) * (1.01 if name == "native_flash" else 1)

    cpu = torch.device("cpu")
    assert attention.kernels_that_work(cpu, torch.float32) == ["native", "native_math", "native_flash", "flex"]
    monkeypatch.setattr(attention, "_attend", attend)
    assert attention.kernels_that_work(cpu, torch.float32) == ["native", "native_math"]


def test_xformers_that_cannot_be_loaded_is_a_warning(monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None)
    )  # fmt: skip
    found = line("attention")
    assert found.level == "warn"
    assert "xformers is installed but broken" in found.text
    assert "[xformers]" in found.mend


def test_xformers_of_another_pytorch_is_a_warning(monkeypatch):
    """It can be imported, and says only in its log that it has no kernels."""
    reason = (
        "xFormers can't load C++ extensions. It was built for:\n    PyTorch 2.10 (you have 2.13)\n  Please reinstall"
    )
    lib = SimpleNamespace(_cpp_library_load_exception=RuntimeError(reason))
    for name, module in (("xformers", ModuleType("xformers")), ("xformers.ops", ModuleType("ops"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "xformers._cpp_lib", lib)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    text = "xFormers can't load C++ extensions. It was built for: PyTorch 2.10 (you have 2.13)"
    mend = f"{sys.executable} -m pip uninstall -y xformers"
    found = line("attention")
    assert (found.level, found.mend) == ("warn", mend)
    assert found.text.endswith(f"; xformers has no kernels here: {text}")
    lib._cpp_library_load_exception = None
    assert line("attention").level == "pass"


def test_codecs(monkeypatch):
    assert line("codecs").text.startswith("H.264, FFV1 and PNG written and read")
    from xdyna.media import writer

    class Container:
        def add_stream(self, name: str, **options: Any) -> None:
            raise ValueError(f"unknown codec {name}")

        def close(self) -> None: ...

    monkeypatch.setattr(writer.av, "open", lambda *args, **kwargs: Container())
    found = line("codecs")
    assert found.level == "fail"
    assert "H.264: unknown codec" in found.text
    assert found.mend == f"{sys.executable} -m pip install --force-reinstall --no-cache-dir av"


def test_a_codec_that_changes_frames(monkeypatch):
    from xdyna.media import video

    original = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda *a: (255 - frame for frame in original(*a)))
    assert "mean difference" in line("codecs").text


def test_a_codec_that_is_to_be_exact_and_is_not(monkeypatch):
    """By two of 255, which is near enough of H.264."""
    from xdyna.media import video

    original = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda *a: ((frame // 4 * 4 + 1) for frame in original(*a)))
    assert line("codecs").text.startswith("FFV1: frames come back with a mean difference of ")


def test_a_png_that_comes_back_changed(monkeypatch):
    from xdyna.media import image

    original = image.read_image
    monkeypatch.setattr(image, "read_image", lambda path: original(path) ^ 1)
    found = line("codecs")
    assert (found.level, found.text) == ("fail", "PNG: an image comes back changed")
    assert found.mend == f"{sys.executable} -m pip install --force-reinstall pillow"


def test_a_data_type_that_the_device_does_not_know(monkeypatch):
    product = torch.Tensor.__matmul__

    def unknown(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", unknown)
    found = line("dtypes")
    assert (found.level, found.text) == ("pass", "float32, bfloat16 on cpu; not float16")


def test_detectors(monkeypatch):
    found = line("detectors") if _has_mediapipe() else None
    assert found is None or found.level == "pass"
    from xdyna.perception import base
    from xdyna.perception.errors import PerceptionError

    def broken(name: str) -> Any:
        raise PerceptionError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(base, "get_backend", broken)
    if _has_mediapipe():
        found = line("detectors")
        assert found.level == "fail"
        assert found.mend == SYSTEM
        assert SYSTEM.endswith("apt-get install -y libegl1 libgles2")  # can be copied
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = line("detectors")
    assert found.level == "warn"
    assert "keypoints and pose videos drive" in found.text
    assert found.mend == install_xdyna("perception")


def test_half_of_dwpose(monkeypatch):
    """rtmlib without what runs its models."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    text = "dwpose: rtmlib is installed, onnxruntime is not"
    assert line("detectors") == Line("detectors", "warn", text, install_xdyna("dwpose"))


def _has_mediapipe() -> bool:
    import importlib.util

    return importlib.util.find_spec("mediapipe") is not None


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped weights that may be damaged."""
    copy = tmp_path / "pretrained"
    shutil.copytree(resource("pretrained"), copy)
    monkeypatch.setattr(doctor, "resource", lambda *parts: tmp_path.joinpath(*parts))
    return copy


def test_weights(weights):
    found = line("weights")
    assert found.level in ("pass", "warn")
    assert "hashes right" in found.text
    told = {Path(file["path"]).relative_to(weights).as_posix(): file for file in found.files}
    for entry in (weights / "SHA256SUMS").read_text().splitlines():
        digest, name = entry.split()
        assert (told[name]["sha256"], told[name]["bytes"]) == (digest, (weights / name).stat().st_size)
    path = weights / "xdyna-tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit of one number
    path.write_bytes(content)
    found = line("weights")
    assert found.level == "fail"
    assert f"xdyna-tiny/vae/{path.name} ({len(content):,} bytes) has other bytes than it was shipped with" in found.text
    assert found.mend == f'git -C "{checkout()}" checkout -- pretrained'
    path.unlink()
    assert f"{path.name} is missing" in line("weights").text


def test_the_list_of_hashes_is_that_of_the_shipped_files():
    """Made by: cd pretrained && sha256sum $(git ls-files '*.safetensors') > SHA256SUMS"""
    root = resource("pretrained")
    names = {entry.split()[1] for entry in (root / "SHA256SUMS").read_text().splitlines()}
    for folder in ("xdyna-tiny", "xdyna-tiny-few-step", "puppet-dynamics", "puppet-expression", "puppet-identity",
                   "puppet-segmenter"):  # fmt: skip
        found = {path.relative_to(root).as_posix() for path in (root / folder).rglob("*.safetensors")}
        assert found
        assert found <= names
    assert line("weights").level != "fail"


def test_published_weights_that_cannot_be_opened(monkeypatch, tmp_path):
    from xdyna.pipelines import folder

    monkeypatch.setattr(folder, "OFFICIAL", tmp_path / "none")
    assert line("weights").level == "warn"
    assert line("weights").mend == f"{sys.executable} -m xdyna convert --download"
    (tmp_path / "xdyna" / "unet").mkdir(parents=True)
    (tmp_path / "xdyna" / "unet" / "a.safetensors").write_bytes(b"\xff" * 100)
    monkeypatch.setattr(folder, "OFFICIAL", tmp_path / "xdyna")
    found = line("weights")
    assert found.level == "fail"
    assert "cannot be opened" in found.text
    assert found.mend == f"rm -r '{tmp_path / 'xdyna'}' && {sys.executable} -m xdyna convert --download"
    whole = resource("pretrained", "puppet-segmenter", "weights.safetensors")
    shutil.copy(whole, tmp_path / "xdyna" / "unet" / "a.safetensors")
    found = line("weights")
    assert found.level == "pass"
    digest = file_sha256(whole)
    assert found.text.endswith(f"in {tmp_path / 'xdyna'}, unet {digest[:16]}...")
    assert found.files[-1]["sha256"] == digest


@pytest.mark.parametrize(("free", "level"), [(0.2, "fail"), (5, "warn"), (50, "pass")])
def test_disk(monkeypatch, free, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 0, int(free * 2**30)))
    found = line("disk")
    assert found.level == level
    if level != "pass":
        assert "du -xh" in found.mend
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found = line("disk")
    assert found.level == "fail"
    assert found.mend.startswith("chmod u+w ")


def test_disk_of_each_place(monkeypatch, tmp_path):
    """Where a folder is not there yet, its nearest parent tells; one place that is nearly full is enough."""
    usage = namedtuple("usage", "total used free")
    free = {}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 0, free.get(path, 50) * 2**30))
    (tmp_path / "small").mkdir()
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "small" / "not" / "yet"))
    assert line("disk").level == "pass"
    free[tmp_path / "small"] = 5
    found = line("disk")  # the cache, between outputs and weights
    assert found.level == "warn"
    assert f"cache 5.0 GiB free ({tmp_path / 'small' / 'not' / 'yet'})" in found.text
    assert f"du -xh '{tmp_path / 'small'}'" in found.mend
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != tmp_path / "small")
    found = line("disk")
    assert found.mend == f"chmod u+w '{tmp_path / 'small'}', or export XDYNA_CACHE=/another/folder"


@pytest.mark.parametrize(("free", "level"), [(0.5, "fail"), (2, "warn"), (30, "pass"), (None, "pass")])
def test_memory(monkeypatch, free, level):
    monkeypatch.setattr(doctor, "free_memory", lambda: free)
    found = line("memory")
    assert found.level == level
    assert (level != "fail") or found.mend.startswith("end other programs: ps aux")
    assert (level != "warn") or "preset=lowmem" in found.mend


def test_memory_is_measured():
    assert 0 < doctor.free_memory() < 10_000


def test_the_trial_run(monkeypatch, tmp_path):
    """It makes frames, leaves nothing behind, and tells what stops it."""
    monkeypatch.chdir(tmp_path)
    found = line("run")
    assert found.level == "pass", found
    assert re.fullmatch(r"2 frames, 1 step of xdyna-tiny in \d+\.\d s, loaded in \d+\.\d s", found.text)
    assert not list(tmp_path.iterdir())
    from xdyna.pipelines import animate

    monkeypatch.setattr(animate.Frames, "numpy", lambda self: np.full((2, 8, 8, 3), 9, np.uint8))
    assert line("run").level == "fail"

    def broken(*args: Any, **options: Any) -> None:
        raise ValueError("no room for this\nsecond line")

    monkeypatch.setattr(animate, "animate", broken)
    assert line("run").text == "no room for this"
    from xdyna.core.errors import WeightsError
    from xdyna.pipelines import model

    def damaged(*args: Any) -> None:
        raise WeightsError("xdyna-tiny is incomplete")

    monkeypatch.setattr(model, "load", damaged)
    assert line("run") == Line("run", "fail", "xdyna-tiny is incomplete", restore_xdyna())


def test_a_check_that_breaks_is_a_line():
    def broken() -> str:
        raise ZeroDivisionError("division by zero")

    found = _run("any", broken)
    assert found == Line("any", "fail", "ZeroDivisionError: division by zero", found.mend)
    assert "pip install" in found.mend


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    checks: dict[str, Any] = {"a": lambda: "well", "b": lambda: ("warn", "so so", "do this")}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    return checks


def test_the_program(three, capsys):
    """Exit code 1 where a line fails; the mending stands below its line; --json has the same."""
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "pass  a          well"
    assert told[2].strip() == "mend: do this"
    three["c"] = lambda: ("fail", "broken", "do that")
    assert main(["doctor"]) == 1
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found[2] == {"name": "c", "level": "fail", "text": "broken", "mend": "do that", "files": []}
    assert run("xdyna.cli.doctor", ["--json"]) == 1


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("libGL.so.1: cannot open shared object file", "headless"),
        ("libgthread-2.0.so.0: cannot open shared object file", "headless"),
        ("libxcb.so.1: cannot open", "headless"),
        ("mediapipe needs the system library libEGL.so.1, which is missing", "libegl1"),
        ("mediapipe needs the system library libGLESv2.so.2, which is missing", "libegl1"),
        ("cannot be read here; mount /sys (mount -t sysfs sysfs /sys)", "mount -t sysfs sysfs /sys"),
        ("libavcodec-d61378e8.so.63.1.102: cannot open shared object file", ""),
        ("nobody knows", ""),
    ],
)
def test_libraries_of_the_system(text, mend):
    found = mending.mend_library(text)
    assert mend in found
    assert bool(mend) == bool(found)


def test_nothing_heavy_is_needed_to_begin():
    """Without torch the doctor still speaks: its modules import nothing of the sort."""
    for module in (doctor, mending):
        lines = Path(module.__file__).read_text().splitlines()
        heads = [entry for entry in lines if entry.startswith(("import ", "from ")) and ".mending import" not in entry]
        for name in ("torch", "numpy", "av", "diffusers", "perception", "pipelines"):
            assert not [entry for entry in heads if name in entry], (module, name)
