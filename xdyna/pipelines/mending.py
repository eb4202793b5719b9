"""Commands that mend what `xdyna.pipelines.doctor` finds; each can be carried out as it is."""

import importlib.metadata
import re

from xdyna.core.install import DESKTOP, headless_command, install_xdyna, pip, requirements

SYSTEM = "as root, on Debian and Ubuntu: apt-get update && apt-get install -y libegl1 libgles2"
"""Brings the libraries of the system that MediaPipe asks for above Python 3.12."""
# Module -> the package that brings it.
PACKAGES = {
    "numpy": "numpy", "torch": "torch", "diffusers": "diffusers", "transformers": "transformers",
    "accelerate": "accelerate", "safetensors": "safetensors", "peft": "peft", "einops": "einops",
    "huggingface_hub": "huggingface_hub", "hydra": "hydra-core", "omegaconf": "omegaconf", "yaml": "pyyaml",
    "av": "av", "cv2": "opencv-contrib-python-headless", "PIL": "pillow", "pillow_heif": "pillow-heif", "tqdm": "tqdm",
}  # fmt: skip


def mend_import(error: ImportError) -> str:
    """What mends a module that cannot be imported: it is missing, or a library of the system is."""
    if isinstance(error, ModuleNotFoundError):
        return install_module(error.name)
    return mend_library(str(error)) or install_xdyna()


def mend_library(text: str) -> str:
    """What mends a library of the system that an error names; "" where it names none."""
    if DESKTOP.search(text):
        return headless_command()
    if "mount -t sysfs" in text:
        return "as root: mount -t sysfs sysfs /sys"
    return SYSTEM if ".so" in text else ""


def install_module(module: str | None) -> str:
    """The command that installs a module's package in a version that fits."""
    package = PACKAGES.get((module or "").partition(".")[0])
    if package is None:
        return install_xdyna()
    if package == PACKAGES["cv2"]:  # it may be there in name, its files gone with another build's
        return headless_command()
    try:
        return pip(f"--force-reinstall --no-deps {package}=={importlib.metadata.version(package)}")  # files are gone
    except importlib.metadata.PackageNotFoundError:
        pass
    for need in requirements():
        wanted = need.partition(";")[0].strip()
        if re.match(r"[\w.-]+", wanted)[0].lower() == package.lower():  # type: ignore[index]
            return pip(f'"{wanted}"')
    return pip(package)
