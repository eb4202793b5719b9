"""Does everything work here? The checks behind `xdyna doctor`.

Each check gives one line: pass, warn (xdyna runs, something is missing) or fail, and the command that mends it. Nothing
heavy is imported before its check runs: what is missing is a line, never a traceback.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from xdyna.core.errors import WeightsError, XDynaWarning
from xdyna.core.files import file_sha256
from xdyna.core.install import install_xdyna, pip, python, restore_xdyna
from xdyna.core.resources import cache_folder, resource, weights_folder
from xdyna.pipelines.mending import PACKAGES, install_modules, mend_import, mend_library

SUPPORTED = ((3, 11), (3, 14))
GIB = 2**30
DISK = (1.0, 10.0)  # GiB free: below the first nothing can be written, below the second no weights fetched
MEMORY = (1.5, 4.0)  # GiB free: below the first xdyna-tiny does not fit, below the second hardly anything else
CHECKSUMS = ("pretrained", "SHA256SUMS")
"""Hashes of the weights that are shipped, as `sha256sum` writes them, beside them."""
FRAMES, STEPS = 2, 1  # of the trial run: as few as use every network, the motion modules included


@dataclass(frozen=True)
class Line:
    """What one check found.

    Attributes:
        name: of the check.
        level: "pass", "warn" or "fail".
        text: what was found.
        mend: the command that mends it, or what to do; "" where nothing is to be done.
        files: those that were looked at: path, bytes, sha256.
    """

    name: str
    level: str
    text: str
    mend: str = ""
    files: tuple[dict[str, Any], ...] = ()


class _Problem(Exception):
    """Ends a check with a line."""

    def __init__(self, level: str, text: str, mend: str) -> None:
        super().__init__(text)
        self.line = (level, text, mend)


def examine_machine() -> Iterator[Line]:
    """Run all checks, one after the other.

    Yields:
        Line: as soon as it is known.
    """
    for name, check in CHECKS.items():
        yield _run(name, check)


def _run(name: str, check: Callable[[], str | tuple[Any, ...]]) -> Line:
    """A check's line, whatever it does."""
    try:
        found = check()
    except _Problem as problem:
        return Line(name, *problem.line)
    except ImportError as error:
        return Line(name, "fail", _first(error), mend_import(error))
    except (ValueError, OSError) as error:
        return Line(name, "fail", _first(error), "do what the message says, then run `xdyna doctor` again")
    except Exception as error:  # whatever it is, the other lines must still be told
        return Line(name, "fail", f"{type(error).__name__}: {_first(error)}", install_xdyna())
    if isinstance(found, str):
        return Line(name, "pass", found)
    level, text, mend, *files = found
    return Line(name, level, text, mend, tuple(*files))


def _first(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- checks -----------------------------------------------------------------------------------------------------------


def check_python() -> str | tuple[str, str, str]:
    """The interpreter."""
    low, high = (".".join(map(str, version)) for version in SUPPORTED)
    text = f"{platform.python_version()} at {sys.executable}"
    if SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        return text
    return (
        "fail",
        f"{text}; xdyna needs {low} to {high}",
        f"make venv PYTHON=python{high}",
    )


def check_packages() -> str | tuple[str, str, str]:
    """Everything that xdyna cannot do without can be imported."""
    missing, broken, mends = [], [], []
    for module in PACKAGES:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing.append(error.name or module)
        except (ImportError, OSError) as error:  # a library is missing, of the system or of its own
            broken.append(f"{module} ({_first(error)})")
            mends.append(mend_library(str(error)) or install_modules([module]))
    if missing:
        return "fail", f"not installed: {', '.join(missing)}", install_modules(missing)
    if broken:
        return "fail", f"installed but broken: {'; '.join(broken)}", " && ".join(dict.fromkeys(mends))
    return f"{len(PACKAGES)} of {len(PACKAGES)} can be imported"


def check_torch() -> str | tuple[str, str, str]:
    """PyTorch and the device that "auto" takes."""
    import torch

    from xdyna.core.device import pick_device

    device = pick_device("auto")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return f"{torch.__version__}, {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if device.type == "cpu" and torch.version.cuda is None and shutil.which("nvidia-smi"):
        mend = pip("--force-reinstall torch --index-url https://download.pytorch.org/whl/cu130")
        return "warn", f"{torch.__version__} is a build for CPUs alone, but there is an NVIDIA driver", mend
    threads = torch.get_num_threads()
    return f"{torch.__version__} on {device.type}, {threads} thread{'s' if threads > 1 else ''}"


def check_dtypes() -> str | tuple[str, str, str]:
    """Data types that the device computes with."""
    import torch

    from xdyna.core.device import pick_device

    device = pick_device("auto")
    works, fails = list[str](), list[str]()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            a = torch.ones(8, 8, device=device, dtype=dtype)
            right = bool(((a @ a).float() == 8).all())
        except RuntimeError:
            right = False
        (works if right else fails).append(str(dtype).removeprefix("torch."))
    if "float32" in fails:
        return "fail", f"matrix products in float32 are wrong on {device}", pip("--force-reinstall torch")
    return f"{', '.join(works)} on {device}" + (f"; not {', '.join(fails)}" if fails else "")


def check_attention() -> str | tuple[str, str, str]:
    """Attention back ends."""
    import torch

    from xdyna.core.device import pick_device

    device = pick_device("auto")
    q = torch.randn(1, 2, 16, 8, device=device, generator=None)
    got = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    want = (q @ q.transpose(-1, -2) / 8**0.5).softmax(-1) @ q
    off = float((got - want).abs().max())
    if not off < 1e-3:
        return "fail", f"PyTorch's attention is off by {off:.2g} on {device}", pip("--force-reinstall torch")
    from xdyna.pipelines.attention import kernels_that_work

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    names = ", ".join(kernels_that_work(device, dtype))
    told = f"attention={names} work on {device} in {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("xformers") is None:
        return f"{told}; xformers is not installed (it is of use with CUDA alone)"
    logging.getLogger("xformers").setLevel(logging.ERROR)  # what it would log is in the line
    try:
        importlib.import_module("xformers.ops")
    except (ImportError, OSError) as error:
        return "warn", f"{told}; xformers is installed but broken: {_first(error)}", install_xdyna("xformers")
    # It is imported without its kernels where it was built for another PyTorch, which it tells its log alone.
    unbuilt = getattr(sys.modules.get("xformers._cpp_lib"), "_cpp_library_load_exception", None)
    if unbuilt is not None:
        reason = " ".join(str(unbuilt).partition("Please")[0].split())
        return "warn", f"{told}; xformers has no kernels here: {reason}", f"{python()} -m pip uninstall -y xformers"
    return told


def check_codecs() -> str | tuple[str, str, str]:
    """A few frames written and read again: H.264 (near), FFV1 and PNG (exact)."""
    import numpy as np

    from xdyna.media.errors import MediaError
    from xdyna.media.image import read_image, write_png
    from xdyna.media.video import read_frames
    from xdyna.media.writer import VideoWriter

    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = [np.stack([np.roll(np.tile(ramp, (64, 1)), 8 * k, axis=1)] * 3, axis=-1) for k in range(4)]
    mend = pip("--force-reinstall --no-cache-dir av")
    with tempfile.TemporaryDirectory(prefix="xdyna-doctor-") as folder:
        for name, lossless in (("H.264", False), ("FFV1", True)):
            path = Path(folder) / f"{name}{'.mkv' if lossless else '.mp4'}"
            try:
                with VideoWriter(path, fps=Fraction(8), size=(64, 64), lossless=lossless) as writer:
                    for frame in frames:
                        writer.write(frame)
                back = np.stack(list(read_frames(path, range(4))))
            except (MediaError, OSError, ValueError) as error:
                raise _Problem("fail", f"{name}: {_first(error)}", mend) from error
            off = float(np.abs(back.astype(int) - np.stack(frames)).mean())
            if off > (0 if lossless else 4):
                raise _Problem("fail", f"{name}: frames come back with a mean difference of {off:.1f} of 255", mend)
        write_png(Path(folder) / "a.png", frames[0])
        if (read_image(Path(folder) / "a.png") != frames[0]).any():
            raise _Problem("fail", "PNG: an image comes back changed", pip("--force-reinstall pillow"))
    import av

    return f"H.264, FFV1 and PNG written and read, PyAV {av.__version__}"


def check_detectors() -> str | tuple[str, str, str]:
    """What finds people: MediaPipe, and DWPose where it is installed."""
    from xdyna.perception.errors import PerceptionError

    dwpose = _dwpose()
    if importlib.util.find_spec("mediapipe") is None:
        text = "mediapipe is not installed: keypoints and pose videos drive, videos of people do not"
        return "warn", f"{text}; {dwpose}", install_xdyna("perception")
    try:
        _try_detector("mediapipe")
    except (PerceptionError, OSError) as error:
        mend = mend_library(str(error)) or install_xdyna("perception")
        return "fail", f"mediapipe: {_first(error)}", mend
    return f"mediapipe {importlib.metadata.version('mediapipe')} with its models; {dwpose}"


def _dwpose() -> str:
    """The state of the pose backend "dwpose", which is optional. What is there must work.

    Raises:
        _Problem: it does not.
    """
    from xdyna.perception.dwpose_backend import models_folder
    from xdyna.perception.errors import PerceptionError

    if importlib.util.find_spec("rtmlib") is None:
        return "dwpose is not installed (optional: the extra dwpose)"
    if importlib.util.find_spec("onnxruntime") is None:
        raise _Problem("warn", "dwpose: rtmlib is installed, onnxruntime is not", install_xdyna("dwpose"))
    try:
        if (folder := models_folder()) is None:
            return "dwpose is installed, its models (351 MB) are fetched at first use"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            device = _try_detector("dwpose").device
    except (PerceptionError, OSError) as error:
        raise _Problem("warn", f"dwpose: {_first(error)}", "do what the message says, or remove the folder") from error
    told = [_first(entry.message) for entry in caught if isinstance(entry.message, XDynaWarning)]
    return f"dwpose with its models in {folder} on {device}" + "".join(f" ({text})" for text in told)


def _try_detector(name: str) -> Any:
    """A pose backend that has looked at one image."""
    import numpy as np

    from xdyna.perception.base import get_backend

    backend = get_backend(name)
    backend.detect(np.full((256, 192, 3), 127, np.uint8))
    return backend


def check_weights() -> tuple[Any, ...]:
    """Shipped weights have the bytes they were shipped with; the published ones are there or not."""
    from xdyna.pipelines.folder import OFFICIAL, TINY

    root = resource(*CHECKSUMS).parent
    entries = [line.split(maxsplit=1) for line in resource(*CHECKSUMS).read_text().splitlines()]
    wrong, files = [], list[dict[str, Any]]()
    for digest, name in entries:
        path = root / name.strip()
        if not path.is_file():
            wrong.append(f"{name} is missing")
            continue
        files.append(_described(path))
        if files[-1]["sha256"] != digest:
            wrong.append(f"{name} ({files[-1]['bytes']:,} bytes) has other bytes than it was shipped with")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return "fail", "; ".join(wrong[:3]) + more, restore_xdyna(), files
    shipped = sum(file["bytes"] for file in files)
    text = f"{len(entries)} shipped files, {shipped / 1e6:.1f} MB, hashes right (xdyna-tiny at {TINY})"
    if not OFFICIAL.is_dir():
        mend = f"{python()} -m xdyna convert --download"
        return "warn", f"{text}; the published weights are not here", mend, files
    published = _folder_of_weights(OFFICIAL)
    total = sum(file["bytes"] for file in published)
    unet = "".join(f", unet {file['sha256'][:16]}..." for file in published if Path(file["path"]).parent.name == "unet")
    return "pass", f"{text}; published weights: {total / 1e9:.2f} GB in {OFFICIAL}{unet}", "", [*files, *published]


def _described(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _folder_of_weights(folder: Path) -> list[dict[str, Any]]:
    """Sizes and hashes of a pipeline folder's weights, each of which can be opened."""
    from safetensors import SafetensorError, safe_open

    files = []
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as tensors:
                list(tensors.keys())
        except (SafetensorError, OSError) as error:
            mend = f"rm -r '{folder}' && {python()} -m xdyna convert --download"
            raise _Problem("fail", f"{path} cannot be opened: {_first(error)}", mend) from error
        files.append(_described(path))
    return files


def check_disk() -> str | tuple[str, str, str]:
    """Room, and leave to write, where outputs, keypoints and weights go."""
    places = {"outputs": Path.cwd(), "cache": cache_folder(), "weights": weights_folder()}
    told, level, mend = [], "pass", ""
    for what, folder in places.items():
        there = next(place for place in (folder, *folder.parents) if place.is_dir())
        free = shutil.disk_usage(there).free / GIB
        told.append(f"{what} {free:.1f} GiB free ({folder})")
        variable = {"outputs": "", "cache": "XDYNA_CACHE", "weights": "XDYNA_HOME"}[what]
        elsewhere = f", or export {variable}=/another/folder" if variable else ", or work in another folder"
        if not os.access(there, os.W_OK):
            return "fail", f"{what}: {there} cannot be written to", f"chmod u+w '{there}'{elsewhere}"
        if free < DISK[0]:
            return (
                "fail",
                f"{what}: {free:.2f} GiB are free in {there}",
                f"make room: du -xh '{there}' | sort -h | tail",
            )
        if free < DISK[1]:
            level, mend = "warn", f"make room for 12 GB of published weights: du -xh '{there}' | sort -h | tail"
    return level, ", ".join(told), mend


def free_memory() -> float | None:
    """Memory that can be had without swapping, in GiB; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) / 2**20  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    except (ValueError, OSError, AttributeError):
        return None


def check_memory() -> str | tuple[str, str, str]:
    """Main memory."""
    free = free_memory()
    if free is None:
        return "how much is free is not told by this system"
    text = f"{free:.1f} GiB free"
    if free < MEMORY[0]:
        return "fail", f"{text}; xdyna-tiny needs {MEMORY[0]:g}", "end other programs: ps aux --sort=-rss | head"
    if free < MEMORY[1]:
        return "warn", f"{text}; more than xdyna-tiny needs {MEMORY[1]:g} and up", "use preset=lowmem, or end programs"
    return text


def check_run() -> str | tuple[str, str, str]:
    """A short animation with xdyna-tiny, from keypoints, into a temporary folder."""
    from xdyna.config.infer import InferConfig
    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines.animate import animate
    from xdyna.pipelines.folder import TINY
    from xdyna.pipelines.model import load

    quiet_libraries()
    assets = resource("assets", "demo")
    start = time.perf_counter()
    # `native`: comparing kernels would take longer than the run.
    settings = InferConfig(steps=STEPS, frames=FRAMES, guidance=1.0, attention="native")
    try:
        model = load(TINY, settings)
        _ = model.pipeline  # loads
    except WeightsError as error:
        raise _Problem("fail", _first(error), restore_xdyna()) from error
    loading = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="xdyna-doctor-") as folder:
        made = animate(
            assets / "reference.png",
            assets / "driving.npz",
            out=Path(folder) / "run.mp4",
            model=model,
            ref_keypoints=assets / "reference.npz",
        )
        deviation = float(made.frames.numpy().std())
    running = time.perf_counter() - start - loading
    if deviation < 5:
        return "fail", f"the frames are one grey (standard deviation {deviation:.1f})", pip("--force-reinstall torch")
    return f"{FRAMES} frames, {STEPS} step of xdyna-tiny in {running:.1f} s, loaded in {loading:.1f} s"


CHECKS: dict[str, Callable[[], Any]] = {
    "python": check_python, "packages": check_packages, "torch": check_torch, "dtypes": check_dtypes,
    "attention": check_attention, "codecs": check_codecs, "detectors": check_detectors, "weights": check_weights,
    "disk": check_disk, "memory": check_memory, "run": check_run,
}  # fmt: skip
