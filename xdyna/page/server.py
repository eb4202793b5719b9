"""Serves the page until it is told to stop: its folder, its address, what it leaves behind (nothing)."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xdyna.config.live import LiveConfig
from xdyna.config.page import PageConfig
from xdyna.core.errors import FileError, UsageError
from xdyna.core.install import install_xdyna
from xdyna.core.resources import resource

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX = "xdyna-page-"
_LOCK = "running"
_SWEEP = 30.0  # s between looks at what is old
_POLL = 0.2  # s
_QUEUE = 256  # requests that wait for a thread; animations wait in a queue of their own

# Before Gradio is imported: it tells nobody anything, and asks nobody whether there is something newer.
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
_OWN = ("GRADIO_ALLOWED_PATHS", "GRADIO_BLOCKED_PATHS", "GRADIO_SHARE", "GRADIO_MCP_SERVER", "GRADIO_NUM_WORKERS")


@contextlib.contextmanager
def folder_of_its_own() -> Iterator[Path]:
    """A temporary folder that is removed in the end; those that dead pages left are removed first.

    Raises:
        FileError: there is no room for it.
    """
    _remove_dead()
    try:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (root / _LOCK).open("w")
    except OSError as error:
        raise FileError(f"no temporary folder can be made in {tempfile.gettempdir()}: {error.strerror}") from error
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield root
    finally:
        lock.close()
        shutil.rmtree(root, ignore_errors=True)


def _remove_dead() -> None:
    """Remove folders of pages that were killed: nobody holds their lock. Those of others are left alone."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # it has just been made, or was killed before it had its lock
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _SWEEP:
                    folder.rmdir()
        except OSError:  # it runs
            continue


def sweep_folder(folder: Path, age: float, now: Callable[[], float] = time.time) -> int:
    """Remove files that nobody has touched for long, and folders that are empty then.

    Args:
        folder: below which they are.
        age: s.
        now: s since the epoch.

    Returns:
        Files removed.
    """
    removed, before = 0, now() - age
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent) / name
            with contextlib.suppress(OSError):
                status = path.lstat()
                if max(status.st_mtime, status.st_ctime) < before:
                    path.unlink()
                    removed += 1
        if Path(parent) != folder:
            with contextlib.suppress(OSError):
                if Path(parent).stat().st_mtime < before:
                    Path(parent).rmdir()
    return removed


def read_auth(given: str | None) -> list[tuple[str, str]] | None:
    """Names and passwords.

    Args:
        given: "USER:PASSWORD", or a file with such lines (empty ones and those that begin with # are left out).

    Raises:
        UsageError: another form.
    """
    if given is None:
        return None
    path = Path(given)
    if path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        entries = [line for line in lines if line and not line.startswith("#")]
    else:
        entries = [given]
    pairs = [(name, word) for name, colon, word in (entry.partition(":") for entry in entries) if colon]
    if not pairs or len(pairs) != len(entries) or not all(name and word for name, word in pairs):
        raise UsageError("--auth: expected USER:PASSWORD, or a file with one such line for each user")
    return pairs


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        UsageError: it cannot be listened at.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(
            f"host={host} port={port}: cannot listen there ({error.strerror or error}); take another --port (0 for a "
            "free one), or a --host that this computer has"
        ) from error


def serve(
    limits: PageConfig,
    *,
    checkpoint: Path | None = None,
    auth: list[tuple[str, str]] | None = None,
    stopped: Callable[[], bool],
    say: Callable[[str], None] = print,
    debug: bool = False,
) -> None:
    """Serve the page until `stopped` says so; running work is cancelled then, and every file removed.

    Args:
        limits: settings.
        checkpoint: pipeline folder or its name.
        auth: names and passwords of those who may come in; None for everybody.
        stopped: asked often.
        say: told where the page is.
        debug: print tracebacks.

    Raises:
        UsageError: an address that is not free, no Gradio, or a checkpoint that is not there.
        WeightsError: the checkpoint is incomplete.
    """
    port = _free(limits.host, limits.port)
    with folder_of_its_own() as root:
        uploads = root / "uploads"
        uploads.mkdir()
        os.environ.update(_QUIET, GRADIO_TEMP_DIR=str(uploads))
        for name in _OWN:
            os.environ.pop(name, None)
        _import_gradio()
        from xdyna.page.rooms import Rooms
        from xdyna.page.studio import Studio
        from xdyna.page.view import build

        studio = Studio(root, uploads, limits, checkpoint=checkpoint, debug=debug)
        live = LiveConfig(
            steps=limits.live_steps, scheduler=limits.live_scheduler, lora=limits.live_lora or [], align="global",
            token_downsampling=limits.live_token_downsampling or 1, face_source=studio.puppet_faces,
            device=limits.device, dtype=limits.dtype, every=0,
        )  # fmt: skip
        rooms = Rooms(limits, live, studio.explain)
        page = build(studio, rooms)
        ended = threading.Event()
        try:
            url = _launch(page, limits, port, auth, root=root, uploads=uploads)
            say(f"the page is at {url} (Ctrl-C ends it); model: {studio.checkpoint.folder.name}")
            if auth is None and limits.host not in ("127.0.0.1", "localhost", "::1"):
                say(f"warning: everybody who reaches {limits.host}:{port} may use it; --auth USER:PASSWORD keeps it")
            sweeper = threading.Thread(target=_sweep, args=(studio, uploads, limits, ended), daemon=True)
            sweeper.start()
            while not stopped():
                time.sleep(_POLL)
            say("the page is being closed")
        finally:
            ended.set()
            rooms.close()
            studio.close()
            page.close(verbose=False)


def _sweep(studio: Any, uploads: Path, limits: PageConfig, ended: threading.Event) -> None:
    while not ended.wait(min(_SWEEP, 60 * limits.keep_minutes / 2)):
        studio.jobs.sweep()
        sweep_folder(uploads, 60 * limits.keep_minutes)
        sweep_folder(studio.root / "keypoints", 60 * limits.keep_minutes)


def _import_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the page needs Gradio ({error}); run: {install_xdyna('demo')}") from error


def _launch(
    page: Any, limits: PageConfig, port: int, auth: list[tuple[str, str]] | None, *, root: Path, uploads: Path
) -> str:
    """Start Gradio's server in a thread. Returns: the address."""
    import gradio as gr
    from starlette.middleware import Middleware

    from xdyna.page.guard import Guard
    from xdyna.page.view import STYLE

    guard = Middleware(Guard, limits=limits, uploads=uploads, root=root)  # type: ignore[arg-type]
    page.queue(max_size=_QUEUE, default_concurrency_limit=8, api_open=False)
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="indigo"
    )
    _, url, _ = page.launch(
        server_name=limits.host,
        server_port=port,
        auth=auth,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        show_error=False,
        footer_links=[],
        allowed_paths=[str(resource("assets", "demo"))],
        max_file_size=limits.max_upload_mb * 1_000_000,
        state_session_capacity=200,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        strict_cors=True,
        theme=theme,
        css_paths=STYLE,
        app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
    )
    return str(url)
