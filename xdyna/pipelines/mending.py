"""Commands that mend what `xdyna.pipelines.doctor` finds; each can be carried out as it is."""

import importlib
import importlib.metadata
import re
from collections.abc import Sequence

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
    """What mends a module that cannot be imported: it is missing, a library of the system is, or one of its own."""
    if isinstance(error, ModuleNotFoundError):
        return install_modules([error.name])
    known = (error.name or "").partition(".")[0] in PACKAGES
    return mend_library(str(error)) or install_modules([error.name if known else _broken(str(error))])


def _broken(text: str) -> str | None:
    """The module whose import ends with this error; one that lost a library of its own may not name itself."""
    for module in PACKAGES:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            if str(error) == text:
                return module
    return None


def mend_library(text: str) -> str:
    """What mends a library of the system that an error names; "" where it names none that is known."""
    if DESKTOP.search(text):
        return headless_command()
    if "mount -t sysfs" in text:
        return "as root: mount -t sysfs sysfs /sys"
    return SYSTEM if re.search(r"lib(EGL|GLES)\w*\.so", text) else ""


def install_modules(modules: Sequence[str | None]) -> str:
    """The command that brings modules back, in versions that fit.

    Args:
        modules: names as in `import`, also of parts of packages; None: it is not known which.
    """
    packages = [PACKAGES.get((module or "").partition(".")[0]) for module in modules]
    if None in packages:
        return install_xdyna()
    damaged, absent, commands = list[str](), list[str](), list[str]()
    for package in filter(None, dict.fromkeys(packages)):
        if package == PACKAGES["cv2"]:  # it may be there in name, its files gone with another build's
            commands.append(headless_command())
            continue
        try:
            damaged.append(f"{package}=={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(f'"{_wanted(package)}"')
    if absent:
        commands.append(pip(" ".join(absent)))
    if damaged:  # pip takes it for installed
        commands.append(pip(f"--force-reinstall --no-deps --no-cache-dir {' '.join(damaged)}"))
    return " && ".join(commands)


def _wanted(package: str) -> str:
    """What xdyna asks of a package."""
    for need in requirements():
        wanted = need.partition(";")[0].strip()
        if re.match(r"[\w.-]+", wanted)[0].lower() == package.lower():  # type: ignore[index]
            return wanted
    return package
