"""What the server of the page does beside serving: its folder, its address, who may come in."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from xdyna.cli.page import main
from xdyna.config.live import LiveConfig
from xdyna.config.page import PageConfig
from xdyna.core.errors import UsageError
from xdyna.core.install import install_xdyna
from xdyna.core.program import run
from xdyna.page import server


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(server.tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_that_goes(temporary: Path) -> None:
    def fail() -> None:
        with server.folder_of_its_own() as root:
            (root / "jobs" / "1").mkdir(parents=True)
            assert root.parent == temporary
            assert root.stat().st_mode & 0o077 == 0  # nobody else's
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_page_left_is_removed_and_what_runs_is_not(temporary: Path) -> None:
    program = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from xdyna.page.server import folder_of_its_own\n"
        "with folder_of_its_own() as root:\n"
        "    (root / 'upload').write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(temporary)], env=dict(os.environ), check=False)
    (dead,) = temporary.iterdir()
    assert (dead / "upload").exists()
    other = temporary / "somebody-else"
    other.mkdir()
    with server.folder_of_its_own() as running, server.folder_of_its_own() as second:
        assert sorted(temporary.iterdir()) == sorted([running, second, other])
    assert list(temporary.iterdir()) == [other]


def test_old_files_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    old, new = folder / "a" / "old.mp4", folder / "b" / "new.mp4"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    when = new.stat().st_ctime
    assert server.sweep_folder(folder, 60, now=lambda: when + 59) == 0
    os.utime(new)
    later = new.stat().st_ctime + 61
    assert server.sweep_folder(folder, 60, now=lambda: later) == 2
    assert folder.is_dir()
    assert server.sweep_folder(tmp_path / "gone", 60) == 0


def test_auth(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("# who\nme:secret\n\nyou:a:b\n")
    assert server.read_auth(str(file)) == [("me", "secret"), ("you", "a:b")]
    assert server.read_auth("me:secret") == [("me", "secret")]
    assert server.read_auth(None) is None
    for wrong in ("me", "me:", ":secret", str(tmp_path / "gone"), ""):
        with pytest.raises(UsageError, match="expected USER:PASSWORD"):
            server.read_auth(wrong)
    file.write_text("me:secret\nnobody\n")
    with pytest.raises(UsageError, match="expected USER:PASSWORD"):
        server.read_auth(str(file))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["port=70000"], "port: got 70000, expected 0 to 65535"),
        (["--queue", "0"], "queue: got 0, expected 1 to 1000"),
        (["--auth", "me"], "--auth: expected USER:PASSWORD"),
        (["quue=3"], "queue"),
        (["--host", "192.0.2.1"], "host=192.0.2.1 port=7860: cannot listen there"),
    ],
)
def test_wrong_usage(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(main, [f"port={port}"]) == 2
    assert f"host=127.0.0.1 port={port}: cannot listen there" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], temporary: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run(main, ["port=0"]) == 2
    assert f"run: {install_xdyna('demo')}" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


def test_live_animations_have_the_settings_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is named live_..., and the device."""
    pytest.importorskip("gradio", reason="needs the extra page")
    from xdyna.page import rooms

    seen: list[LiveConfig] = []

    class Rooms:
        def __init__(self, limits: PageConfig, settings: LiveConfig, explain: object) -> None:
            seen.append(settings)
            raise KeyError

    monkeypatch.setattr(rooms, "Rooms", Rooms)
    for limits in (PageConfig(port=0), PageConfig(port=0, live_token_downsampling=3, live_steps=4, device="cpu")):
        with pytest.raises(KeyError):
            server.serve(limits, stopped=lambda: True)
    names = ("token_downsampling", "steps", "scheduler", "lora", "device", "every", "align")
    assert [[getattr(settings, name) for name in names] for settings in seen] == [
        [2, 2, "lcm", ["xdyna-tiny-few-step:1.15"], "auto", 0, "global"],
        [3, 4, "lcm", ["xdyna-tiny-few-step:1.15"], "cpu", 0, "global"],
    ]
