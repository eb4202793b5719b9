import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from xdyna.core import install
from xdyna.core.resources import checkout

PIP = f"{sys.executable} -m pip install"
AWAY = f"{sys.executable} -m pip uninstall -y opencv-python opencv-contrib-python"
NEEDS = [
    "av>=12",
    "decord>=0.6; (sys_platform == 'linux' and platform_machine == 'x86_64') or sys_platform == 'win32'",
    "mediapipe==0.10.21; (python_version < \"3.13\") and extra == 'perception'",
    "mediapipe>=1.2; (python_version >= '3.13') and extra == 'perception'",
    "onnxruntime>=1.17; extra == 'perception'",
    "xdyna[perception]; extra == 'all'",
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """xdyna as a package that came from somewhere, with the requirements above."""

    def install_from(entry: object) -> None:
        class Installed:
            version = "9.8"

            def read_text(self, name: str) -> str | None:
                assert name == "direct_url.json"
                return entry and json.dumps(entry)

        monkeypatch.setattr(install, "checkout", lambda: None)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: NEEDS)

    return install_from


@pytest.mark.parametrize("extra", ["", "train"])
def test_a_checkout_is_completed_from_itself(extra):
    named = f"[{extra}]" if extra else ""
    assert install.install_xdyna(extra) == f'{PIP} -e "{checkout()}{named}" -c "{checkout()}/constraints.txt"'
    root = checkout()
    assert root is not None
    assert install.restore_xdyna() == f'git -C "{root}" checkout -- pretrained'


def test_a_checkout_without_its_history_says_so(tmp_path, monkeypatch):
    """An archive, or a container's copy."""
    monkeypatch.setattr(install, "checkout", lambda: tmp_path)
    assert install.restore_xdyna() == f"copy the folder pretrained of this release over '{tmp_path / 'pretrained'}'"


def test_a_wheel_in_a_folder_with_a_space_is_not_gone(installed, tmp_path):
    """Its address has %20 there."""
    wheel = tmp_path / "my wheels" / "xdyna-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert "%20" in install.came_from()
    assert install.install_xdyna("train") == f'{PIP} "xdyna[train] @ {wheel.as_uri()}"'


def test_a_package_is_completed_from_where_it_came(installed, tmp_path):
    """No index need have xdyna."""
    wheel = tmp_path / "xdyna-1-py3-none-any.whl"
    wheel.touch()
    installed({"url": f"file://{wheel}", "archive_info": {}})
    assert install.install_xdyna("train") == f'{PIP} "xdyna[train] @ file://{wheel}"'
    assert install.restore_xdyna() == f'{PIP} --force-reinstall --no-deps "xdyna @ file://{wheel}"'
    installed({"url": "https://a.b/x.git", "vcs_info": {"vcs": "git", "commit_id": "1"}})
    assert install.install_xdyna() == f'{PIP} "xdyna @ git+https://a.b/x.git"'


@pytest.mark.parametrize("entry", [{"url": "file:///gone/xdyna-1-py3-none-any.whl", "archive_info": {}}, None])
def test_where_its_wheel_is_gone_the_packages_are_named(installed, entry):
    installed(entry)
    assert install.install_xdyna() == (
        f"{PIP} \"av>=12\" \"decord>=0.6; (sys_platform == 'linux' and platform_machine == 'x86_64') or "
        "sys_platform == 'win32'\""
    )
    first, then = install.install_xdyna("perception").split(" && ", 1)
    assert first == (
        f"{PIP} \"mediapipe==0.10.21; (python_version < '3.13')\" \"mediapipe>=1.2; (python_version >= '3.13')\" "
        '"onnxruntime>=1.17"'
    )
    assert then == install.headless_command(after="perception")
    assert install.restore_xdyna().endswith("install --force-reinstall --no-deps WHEEL")


def test_what_pip_is_given_are_requirements():
    """Those of the package that is installed here, whose markers its build wrote."""
    for extra, package in (("", "torch"), ("perception", "mediapipe"), ("ray", "ray")):
        found = [Requirement(text) for text in install.requirements(extra)]
        assert package in {need.name for need in found}
        assert not any("extra" in str(need.marker) for need in found)
    assert install.requirements("nothing") == []


@pytest.mark.parametrize("extra", ["perception", "dwpose"])
def test_after_builds_for_desktops_the_other_one_is_put_back(extra):
    """mediapipe and rtmlib bring builds of OpenCV that no server can import."""
    command = install.install_xdyna(extra)
    build = f'opencv-contrib-python-headless -c "{checkout()}/constraints.txt"'
    assert command.endswith(f" && {AWAY} && {PIP} --force-reinstall --no-deps {build}")


@pytest.mark.parametrize(
    ("version", "build"),
    [((3, 12), '"opencv-contrib-python-headless<4.12"'), ((3, 13), "opencv-contrib-python-headless==9.8")],
)
def test_the_build_that_is_put_back_fits_numpy(installed, monkeypatch, version, build):
    """Below Python 3.13 mediapipe takes numpy back to 1.26, which OpenCV 4.12 and above does not know."""
    installed(None)
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    assert install.headless_command(after="perception") == f"{AWAY} && {PIP} --force-reinstall --no-deps {build}"
    assert install.headless_command().endswith("--no-deps opencv-contrib-python-headless==9.8")


def test_commands_bear_a_path_with_spaces(tmp_path, monkeypatch):
    folder = tmp_path / "my projects"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    told = subprocess.run(f"{install.python()} -c 'print(4)'", shell=True, capture_output=True, text=True, check=True)
    assert told.stdout == "4\n"


def test_no_message_sends_to_an_index():
    """`pip install xdyna[...]` finds nothing: the command is made by `install_xdyna` everywhere."""
    for path in sorted((Path(install.__file__).parents[1]).rglob("*.py")):
        assert path.name == "install.py" or "xdyna[" not in path.read_text().replace("``", ""), path


NO_ROUTE = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('...refused')': /simple/torch/"
)


NO_COMPILER = """2026-11-29T14:15:00,436 Collecting einops
2026-11-29T14:15:13,436 Collecting numpy<2 (from x)
2026-11-29T14:15:20,630   Collecting meson-python>=0.18.0
2026-11-29T14:15:35,223   ../meson.build:1:0: ERROR: Unknown compiler(s): [['cc'], ['gcc']]
2026-11-29T14:15:35,607 ERROR: metadata generation failed
2026-11-29T14:15:35,607 Exception information:
"""


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            "  error: command 'gcc' failed\n  ERROR: Failed building wheel for psutil\n",
            "psutil has no wheel for Python 3",
        ),
        ("ERROR: Failed to build 'numpy' when getting requirements to build wheel", "numpy has no wheel for Python 3"),
        (NO_COMPILER, "numpy<2 has no wheel for Python 3"),
        (NO_COMPILER.replace("ERROR: metadata", "metadata"), "pip failed, its message stands above"),
        ("ERROR: No matching distribution found for decord>=0.6", "the package index has no decord>=0.6 for Python 3"),
        (f"{NO_ROUTE}\nERROR: No matching distribution found for torch==2.13.0", "the package index cannot be reached"),
        (f"{NO_ROUTE}\nERROR: ResolutionImpossible: for help visit", "the package index cannot be reached"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED]\nERROR: ResolutionImpossible:", "the package index's certificate is not"),
        ("ERROR: ResolutionImpossible: for help visit", "pip failed, its message stands above"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            f"{NO_ROUTE}\nERROR: No matching distribution found for hatchling>=1.25\n"
            "ERROR: Failed to build 'file:///home/x' when installing build dependencies",
            "the package index cannot be reached",
        ),
        (f"{NO_ROUTE}\n  ERROR: Failed building wheel for psutil\n", "psutil has no wheel for Python 3"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED]\nERROR: Failed building wheel for psutil\n", "psutil has no wheel"),
        ("ERROR: Failed to build 'file:///home/x' when preparing metadata", "pip failed, its message stands above"),
        ("ERROR: Cannot install numpy<2 and numpy>2", "pip failed, its message stands above"),
    ],
)
def test_what_pip_could_not_do_is_one_sentence(log, told, tmp_path):
    found = install.explain_pip(log)
    assert found.startswith(told)
    assert "\n" not in found
    (tmp_path / "log").write_text(log)
    command = [sys.executable, "-m", "xdyna.core.install", str(tmp_path / "log")]
    done = subprocess.run(command, cwd=Path(install.__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: {found}\n")
