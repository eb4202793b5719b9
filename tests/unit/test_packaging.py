"""What is declared is what is imported, and constraints.txt has a version of it for every supported Python."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

# Where the name of the package is not that of the module.
PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-contrib-python-headless",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
    "hydra": "hydra-core",
}
# Imported by choice, with a sentence where they are missing; no extra promises them.
BY_CHOICE = {"bitsandbytes": "training/optim.py"}
# The libraries that `eval parity` compares with, in an environment of their own (`make eval-parity`).
PARITY = {"cdfvd", "facenet_pytorch", "lpips", "pytorch_fid", "torchvision"}
# Which extras may stand behind a package of xdyna, besides the core's requirements.
BEHIND = {
    "cli": set(EXTRAS),
    "core": {"s3"},
    "data": {"data"},
    "evaluation": {"eval", "perception"},
    "models": {"xformers"},
    "page": {"demo"},
    "perception": {"dwpose", "perception"},
    "pipelines": {"eval"},  # a plot of `bench modes`
    "preprocess": {"data", "perception", "ray"},
    "puppets": {"eval", "perception"},
    "training": {"train"},
}


def third_party(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from (top for name in names if (top := name.split(".")[0]) not in {*sys.stdlib_module_names, "xdyna"})


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


@pytest.mark.parametrize("package", sorted(p.name for p in (ROOT / "xdyna").iterdir() if (p / "__init__.py").is_file()))
def test_what_is_imported_is_declared(package: str) -> None:
    allowed = names(PROJECT["dependencies"]).union(*(names(EXTRAS[extra]) for extra in BEHIND.get(package, ())))
    for path in sorted((ROOT / "xdyna" / package).rglob("*.py")):
        here = path.relative_to(ROOT / "xdyna").as_posix()
        for module in third_party(path):
            if BY_CHOICE.get(module) == here or (module in PARITY and here.startswith("evaluation/parity")):
                continue
            assert canonicalize_name(PACKAGES.get(module, module)) in allowed, f"{here} imports {module}"


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_have_a_version_of_everything(python: str) -> None:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}

    def holds(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})

    pinned: dict[str, str] = {}
    for pin in filter(holds, pins()):
        name = canonicalize_name(pin.name)
        assert name not in pinned, f"two versions of {name} for Python {python}"
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        pinned[name] = specifier.version
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == "xdyna" or not holds(requirement):
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no {requirement.name} for Python {python}: make constraints"
        assert requirement.specifier.contains(version, prereleases=True), f"{text}: constraints.txt has {version}"


def test_all_is_every_extra() -> None:
    (own,) = (Requirement(text) for text in EXTRAS["all"])
    assert own.name == "xdyna"
    assert own.extras == set(EXTRAS) - {"all"}
