"""Commands that install what is missing; each can be carried out as it is, in this environment.

No index need have xdyna, so that `pip install "xdyna[...]"` may find nothing: extras are installed from where xdyna
came, a checkout, a wheel or a repository, and where that is gone, by the names of their packages.
"""

import contextlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

from xdyna.core.resources import checkout

DESKTOP = re.compile(r"lib(GL|gthread|glib|SM|X\w*|xcb)\b[\w.-]*\.so")
"""Libraries that builds of OpenCV ask for which are made for desktops."""
_HEADLESS = "opencv-contrib-python-headless"
_BRING_DESKTOP = {"perception", "dwpose"}  # extras with packages that ask for such a build
_LAST_FOR_NUMPY_1 = (3, 12)  # the newest Python with mediapipe 0.10.21, which needs numpy < 2; OpenCV 4.12 has numpy 2


def python() -> str:
    """This environment's interpreter, as a shell takes it."""
    return f'"{sys.executable}"' if " " in sys.executable else sys.executable


def pip(what: str) -> str:
    """A command of this environment's pip."""
    return f"{python()} -m pip install {what}"


def headless_command(*, after: str = "") -> str:
    """What puts the build of OpenCV without a desktop's libraries in the place of others, in this environment.

    All builds share one folder, so the others go first.

    Args:
        after: the extra that is installed before it and may change the release that fits; "": the release stays.
    """
    package = _HEADLESS
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        package = f"{_HEADLESS}=={importlib.metadata.version(_HEADLESS)}"
    if after or package == _HEADLESS:
        root = checkout()
        if root is not None:
            package = f'{_HEADLESS} -c "{root / "constraints.txt"}"'
        elif sys.version_info[:2] <= _LAST_FOR_NUMPY_1:
            package = f'"{_HEADLESS}<4.12"'
    gone = f"{python()} -m pip uninstall -y opencv-python opencv-contrib-python"
    return f"{gone} && {pip(f'--force-reinstall --no-deps {package}')}"


def install_xdyna(extra: str = "") -> str:
    """The command that installs xdyna with what it needs, or one of its extras.

    Args:
        extra: of pyproject.toml; "": what xdyna cannot do without.
    """
    root, url = checkout(), came_from()
    named = f"[{extra}]" if extra else ""
    if root is not None:
        command = pip(f'-e "{root}{named}" -c "{root / "constraints.txt"}"')
    elif url:
        command = pip(f'"xdyna{named} @ {url}"')
    else:
        command = pip(" ".join(f'"{need}"' for need in requirements(extra)) or f'"xdyna{named}"')
    return f"{command} && {headless_command(after=extra)}" if extra in _BRING_DESKTOP else command


def restore_xdyna() -> str:
    """The command that puts the files back that xdyna was installed with, or says what to do."""
    if (root := checkout()) is not None:
        if not (root / ".git").exists():  # an archive, or a container's copy
            return f"copy the folder pretrained of this release over '{root / 'pretrained'}'"
        return f'git -C "{root}" checkout -- pretrained'
    if url := came_from():
        return pip(f'--force-reinstall --no-deps "xdyna @ {url}"')
    return f"get the wheel of xdyna again, then: {pip('--force-reinstall --no-deps')} WHEEL"


def requirements(extra: str = "") -> list[str]:
    """What the installed package asks for, as pip takes it.

    Args:
        extra: of which; "": what xdyna cannot do without.
    """
    try:
        told = importlib.metadata.requires("xdyna") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for need in told:
        what, _, marker = (part.strip() for part in need.replace('"', "'").partition(";"))
        of = re.search(r"(?:\s*and\s*)?extra == '([\w-]+)'$", marker)
        if (of[1] if of else "") != extra:
            continue
        where = marker[: of.start()].strip() if of else marker
        found.append(f"{what}; {where}" if where else what)
    return found


def came_from() -> str:
    """URL of the wheel, archive or folder that xdyna was installed from; "" where that was an index, or is gone."""
    try:
        told = importlib.metadata.distribution("xdyna").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    entry = json.loads(told) if told else {}
    url = str(entry.get("url", ""))
    if "vcs_info" in entry:
        return f"{entry['vcs_info'].get('vcs', 'git')}+{url}"
    if url.startswith("file:") and not Path(unquote(urlparse(url).path)).exists():
        return ""
    return url


_NOT_BUILT = re.compile(r"Failed building (?:wheel|editable) for ([\w.-]+)|Failed to build '?(?!file:)([\w.-]+)")
_COLLECTED = re.compile(r"^\S+ Collecting ([^\s;(]+)", re.MULTILINE)  # what a build asks for is indented
_NOT_FOUND = re.compile(r"No matching distribution found for ([^\s;(]+)")
_NO_INDEX = re.compile(r"NewConnectionError|ConnectTimeout|NameResolutionError|Connection refused|ReadTimeout")


def explain_pip(log: str) -> str:
    """One sentence about why pip did not install xdyna.

    Args:
        log: what `pip --log` wrote.

    Returns:
        The sentence; it names the package, where one is to blame.
    """
    version = ".".join(map(str, sys.version_info[:2]))
    other = "another Python of 3.11 to 3.14: make venv PYTHON=/path/to/python"
    if "No space left on device" in log:
        return (
            "the disk is full; with PyTorch for GPUs .venv takes 7 GB, for CPUs 3 GB: "
            'make venv PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"'
        )
    found = _NOT_FOUND.search(log)
    nothing = found or "ResolutionImpossible" in log  # what it says where every index is silent
    if nothing and "CERTIFICATE_VERIFY_FAILED" in log:
        return "the package index's certificate is not trusted here; PIP_CERT=FILE names the certificates of a proxy"
    if nothing and _NO_INDEX.search(log):
        return "the package index cannot be reached; mind HTTPS_PROXY and pip's settings (pip config list)"
    unbuilt = _NOT_BUILT.search(log)
    name = unbuilt[1] or unbuilt[2] if unbuilt else _collected_last(log)
    if name is not None:
        return f"{name} has no wheel for Python {version} on this machine, and building it failed; use {other}"
    if found:
        return f"the package index has no {found[1]} for Python {version} on this machine; use {other}"
    return "pip failed, its message stands above"


def _collected_last(log: str) -> str | None:
    """The package whose metadata could not be made, which pip's message leaves out; None where they were."""
    before, failed, _ = log.partition("ERROR: metadata generation failed")
    names = _COLLECTED.findall(before)
    return names[-1] if failed and names else None


if __name__ == "__main__":  # of the Makefile, before xdyna is installed: LOG of pip
    sys.exit(f"error: {explain_pip(Path(sys.argv[1]).read_text(errors='replace'))}")
