"""What of HTTP is let in, before Gradio sees it.

Only the routes that the page needs; bodies of bounded size; no file named by a client but uploads; no address that a
client wants fetched; no other site's pages acting through a visitor's browser. Answers carry a policy that forbids the
browser to load anything from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xdyna.config.page import PageConfig
from xdyna.page.uploads import MEGA

Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]

API = "/gradio_api"
LARGEST_MESSAGE = 2_000_000  # bytes of a request that is no upload
_DRAINED = 16_000_000  # bytes of a refused request that are read and thrown away
_DRAINING = 10.0  # s of it
_FORM = 100_000  # bytes that a form with an upload may have beside it
_ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login|logout|svelte/.*|static/.*|assets/.*)/?"
    rf"|{API}/(info|openapi\.json|queue/(join|data|status)|upload|upload_progress|file=.*|file/.*|heartbeat/[\w-]+|user"
    r"|token|app_id|login_check|startup-events|run/\w+|call/(v2/)?\w+(/[\w-]+)?|cancel|reset|theme\.css)/?"
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Refused(Exception):
    """A request that is not let in. Args: status: of HTTP; text: a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Guard:
    """An ASGI application around another.

    Args:
        app: that lies behind it.
        limits: of the page.
        uploads: folder that uploads lie in.
        root: folder whose size is bounded.
    """

    def __init__(self, app: Any, *, limits: PageConfig, uploads: Path, root: Path) -> None:
        self.app, self.limits, self.uploads, self.root = app, limits, uploads.resolve(), root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # the page has none; not accepted, it is answered with 403
            await send({"type": "websocket.close"})
            return
        begun = read = False

        async def reading() -> Any:
            nonlocal read
            message = await receive()
            read = not message.get("more_body", False)
            return message

        async def answer(message: dict[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                others = [pair for pair in message.get("headers", []) if pair[0].lower().decode() not in HEADERS]
                message = {**message, "headers": [*others, *own]}
            await send(message)

        try:
            received = await self._admitted(scope, reading)
            await self.app(scope, received, answer)
        except Refused as refused:
            if begun:
                raise
            if not read:  # once it is, the server's `receive` waits until the client is gone
                await _drained(reading)
            body = json.dumps({"error": refused.text, "detail": refused.text}).encode()
            head = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await answer({"type": "http.response.start", "status": refused.status, "headers": head})
            await send({"type": "http.response.body", "body": body})

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """What gives the body of a request that is let in.

        Raises:
            Refused: it is not.
        """
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        path = scope["path"]
        if not _ROUTES.fullmatch(path):
            raise Refused(404, "there is nothing here")
        if "://" in path:
            raise Refused(400, "addresses are not fetched here; upload the file")
        host = _name(f"//{headers.get('host', '')}")
        if self.limits.host in _LOOPBACK and host not in _LOOPBACK:
            raise Refused(403, f"this page is for this computer alone; open it as http://127.0.0.1:{self.limits.port}")
        if "origin" in headers and _name(headers["origin"]) != host:
            raise Refused(403, "this page does not answer other sites")
        if scope["method"] in ("GET", "HEAD"):
            return receive
        if path.rstrip("/") == f"{API}/upload":
            if folder_size(self.root) > self.limits.disk_mb * MEGA:
                raise Refused(507, "there is no room for files just now; try again later")
            return self._bounded(receive, headers, self.limits.max_upload_mb * MEGA + _FORM, "the file", "MB")
        bounded = self._bounded(receive, headers, LARGEST_MESSAGE, "the request", "MB")
        return await self._message(bounded, headers, login=path.rstrip("/") == "/login")

    def _bounded(self, receive: Receive, headers: dict[str, str], most: int, what: str, unit: str) -> Receive:
        """Receives no more than `most` bytes."""
        refused = Refused(413, f"{what} is too large; at most {most / MEGA:.0f} {unit} are taken here")
        given = headers.get("content-length", "0")
        if not given.isdecimal() or int(given) > most:
            raise refused
        size = 0

        async def bounded() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise refused
            return message

        return bounded

    async def _message(self, receive: Receive, headers: dict[str, str], *, login: bool) -> Receive:
        """The same body, after it was read and looked at."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return receive
            body += message.get("body", b"")
            more = message.get("more_body", False)
        is_form = headers.get("content-type", "").startswith(
            ("application/x-www-form-urlencoded", "multipart/form-data")
        )
        if body and not (login and is_form):  # whatever it calls itself: who parses it is not decided here
            if "json" not in headers.get("content-type", "json"):
                raise Refused(415, "the request is no JSON")
            try:
                content = json.loads(body)
                named = list(_paths(content))
            except (ValueError, RecursionError) as error:
                raise Refused(400, "the request is no JSON") from error
            for path in named:
                if not self.is_upload(path):
                    raise Refused(400, "a request may name files that were uploaded, and no others; upload the file")
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def is_upload(self, path: Any) -> bool:
        """Whether a path that a client names lies in the folder of uploads. Args: path: anything."""
        if not isinstance(path, str) or "\0" in path or "://" in path:
            return False
        return Path(os.path.realpath(path)).is_relative_to(self.uploads)


async def _drained(receive: Receive) -> None:
    """Throw away what is still sent, up to limits: who is cut off while sending never sees the answer."""
    left, more = _DRAINED, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAINING):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)


def _paths(content: Any) -> Iterator[Any]:
    """All values that stand under "path" in a JSON tree."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get("path") is not None:
                yield one["path"]
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
