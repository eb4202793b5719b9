"""The rules of the house that a machine can check, on the syntax trees of all source files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The floors of the house, lowest first. A package may import those of the floors below its own, also inside functions;
# neighbours on one floor never import each other. Itself and `xdyna` (the version) always.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("config", "diffusion", "media"),
    ("models", "perception"),
    ("checkpoints",),
    ("pipelines", "data"),
    ("evaluation",),
    ("training", "preprocess"),
    # The page stands beside the programs, above pipelines: nothing but its program imports it.
    ("puppets", "page"),
)
ALLOWED: dict[str, set[str]] = {
    package: {below for floor in FLOORS[:level] for below in floor}
    for level, floor in enumerate(FLOORS)
    for package in floor
}
# The application layer behind the scripts: may import everything; imported by scripts and tests alone.
APPLICATION = "cli"
# Of it, who may know of puppets.
PUPPET_PROGRAMS = {"xdyna/cli/puppets.py", "xdyna/cli/demo.py"}

MAX_SCRIPT_LINES = 80
MAX_FILE_LINES = 450
CONFIG_LIBRARIES = {"omegaconf", "hydra"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[str, int]]:
    """All absolute module names that a file imports anywhere, with line numbers; relative ones are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and _dotted(node.func) in ("importlib.import_module", "__import__"):
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((name, node.lineno) for name in names if isinstance(name, str))


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def direction_problems(package: str, tree: ast.AST, module: str, *, is_package: bool = False) -> list[str]:
    """Imports of a file of `xdyna.<package>` that point the wrong way."""
    if package == APPLICATION:
        return []
    allowed = ALLOWED[package] | {package}
    problems = []
    for name, line in imports(tree, module, is_package=is_package):
        parts = name.split(".")
        if parts[0] in ("scripts", "tests"):
            problems.append(f"line {line}: {name}")
        elif parts[0] == "xdyna" and len(parts) > 1 and parts[1] not in allowed | {"__version__"}:
            problems.append(f"line {line}: {name}; xdyna.{package} may import {sorted(allowed)}")
    return problems


def code_problems(tree: ast.AST, *, is_config: bool = False) -> list[str]:
    """Constructs that are not used anywhere in this project."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Call) and _dotted(node.func) == "torch.load":
            safe = [k.value for k in node.keywords if k.arg == "weights_only"]
            if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                problems.append(f"line {node.lineno}: torch.load without weights_only=True")
        if isinstance(node, ast.Call) and _dotted(node.func) in ("pickle.load", "pickle.loads", "eval", "exec"):
            problems.append(f"line {node.lineno}: {_dotted(node.func)} runs code from data")
    for name, line in imports(tree, "x", is_package=False):
        if name.split(".")[0] == "torchvision":
            problems.append(f"line {line}: torchvision is not a requirement")
        if name.split(".")[0] in CONFIG_LIBRARIES and not is_config:
            problems.append(f"line {line}: {name}; only xdyna/config/loader.py knows the configuration libraries")
    return problems


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_there_is_something_to_check() -> None:
    assert len(sources("xdyna")) > 20


def test_every_package_has_a_place_in_the_order() -> None:
    for path in (ROOT / "xdyna").iterdir():
        if path.is_dir() and any(path.glob("*.py")):
            assert path.name in {*ALLOWED, APPLICATION}, f"xdyna/{path.name} is not in the table of allowed imports"
            assert (path / "__init__.py").exists(), f"xdyna/{path.name} would not be installed: no __init__.py"


def test_the_order_has_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        free = [name for name, needs in ALLOWED.items() if name not in done and needs <= done]
        assert free, f"a cycle among {sorted(set(ALLOWED) - done)}"
        done.update(free)


@pytest.mark.parametrize("path", sources("xdyna"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT / "xdyna").parts
    tree = ast.parse(path.read_text())
    if parts in (("__init__.py",), ("__main__.py",)):
        return  # names of the library, loaded when they are used (tests/process/test_animate.py); the command
    package = parts[0].removesuffix(".py")
    problems = direction_problems(package, tree, module_name(path), is_package=path.name == "__init__.py")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", sources("xdyna", "scripts"), ids=lambda path: str(path.relative_to(ROOT)))
def test_code(path: Path) -> None:
    problems = code_problems(ast.parse(path.read_text()), is_config=path.parent == ROOT / "xdyna" / "config")
    assert not problems, "\n".join(problems)


def test_files_stay_readable() -> None:
    limits = dict.fromkeys(sources("xdyna"), MAX_FILE_LINES) | dict.fromkeys(sources("scripts"), MAX_SCRIPT_LINES)
    for path, limit in limits.items():
        lines = len(path.read_text().splitlines())
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines, at most {limit}"


def test_scripts_only_parse_and_call() -> None:
    """A script is not a library: nothing imports it."""
    for path in sources("xdyna", "tests"):
        for name, line in imports(ast.parse(path.read_text()), module_name(path), is_package=False):
            assert name.split(".")[0] != "scripts", f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_puppets_are_a_wing_of_their_own() -> None:
    """Only their programs import them; everybody else finds them by the names that configs give."""
    for path in sources("xdyna", "scripts"):
        here = path.relative_to(ROOT).as_posix()
        if here in PUPPET_PROGRAMS or here.startswith("xdyna/puppets/"):
            continue
        names = [name for name, _ in imports(ast.parse(path.read_text()), module_name(path), is_package=False)]
        assert not [name for name in names if name.startswith("xdyna.puppets")], f"{here} imports puppets"


def reached(script: str) -> set[str]:
    """Files of xdyna that a script imports, at its start or inside functions; also by the name given to `run`."""
    found: set[str] = set()
    todo = set(re.findall(r"xdyna(?:\.\w+)+", (ROOT / script).read_text()))
    while todo:
        name = todo.pop()
        base = ROOT.joinpath(*name.split("."))
        path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if not path.is_file():
            continue
        here = path.relative_to(ROOT).as_posix()
        if here in found or here == "xdyna/__init__.py":
            continue
        found.add(here)
        for full, _ in imports(ast.parse(path.read_text()), module_name(path), is_package=path.name == "__init__.py"):
            todo |= {full, full.rpartition(".")[0]}
    return found


@pytest.mark.parametrize(
    ("script", "never", "most"),
    [
        ("scripts/infer.py", {"evaluation", "training", "preprocess", "puppets", "data"}, 108),
        ("scripts/train.py", {"preprocess", "puppets"}, 144),
        ("xdyna/cli/page.py", {"evaluation", "training", "preprocess", "puppets", "data"}, 124),
    ],
)
def test_what_a_program_reaches(script: str, never: set[str], most: int) -> None:
    found = reached(script)
    assert not {here for here in found if here.split("/")[1] in never}
    assert 20 < len(found) <= most, f"{script} reaches {len(found)} files"


# The checks themselves


@pytest.mark.parametrize(
    ("package", "code", "wrong"),
    [
        ("media", "import xdyna.models", True),
        ("media", "import xdyna.media.errors", False),
        ("media", "def f():\n    from xdyna.perception import types", True),
        ("media", "from xdyna import perception", True),
        ("media", "from xdyna import __version__", False),
        ("media", "from ..models import unet", True),
        ("media", "from .errors import MediaError", False),
        ("media", "from .. import models", True),
        ("media", "import importlib\nimportlib.import_module('xdyna.models')", True),
        ("models", "from xdyna.diffusion import prior", False),
        ("models", "from xdyna.checkpoints.io import sha256", True),
        ("media", "from xdyna.config.loader import compose", True),
        ("pipelines", "from xdyna.training import loop", True),
        ("perception", "from xdyna.cli import main", True),
        ("perception", "import tests.conftest", True),
        ("cli", "from xdyna.pipelines import animate", False),
    ],
)
def test_direction_check(package: str, code: str, wrong: bool) -> None:
    assert bool(direction_problems(package, ast.parse(code), f"xdyna.{package}.some")) == wrong


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("try:\n    f()\nexcept:\n    pass", True),
        ("try:\n    f()\nexcept ValueError:\n    pass", False),
        ("torch.load('x')", True),
        ("torch.load('x', weights_only=False)", True),
        ("torch.load('x', weights_only=flag)", True),
        ("torch.load('x', weights_only=True)", False),
        ("from torchvision import io", True),
        ("def f():\n    import torchvision.ops", True),
        ("from omegaconf import OmegaConf", True),
        ("import hydra", True),
        ("pickle.load(f)", True),
        ("eval('1')", True),
        ("model.eval()", False),
    ],
)
def test_code_check(code: str, wrong: bool) -> None:
    assert bool(code_problems(ast.parse(code))) == wrong


def test_the_config_file_may_use_its_libraries() -> None:
    assert not code_problems(ast.parse("from omegaconf import OmegaConf"), is_config=True)
