"""What of HTTP is let in: the guard alone, around an application that answers everything."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from xdyna.config.page import PageConfig
from xdyna.page.guard import API, LARGEST_MESSAGE, Guard, folder_size

JSON = {"content-type": "application/json"}


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "a1").mkdir(parents=True)
    (folder / "a1" / "image.png").write_bytes(b"x" * 100)
    return folder


class Answer:
    status = 0
    body = b""
    got = b""
    unread: list[Any]
    pairs: list[tuple[bytes, bytes]]
    headers: dict[str, str]


def ask(
    uploads: Path,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    limits: PageConfig | None = None,
    piece: int = 65536,
) -> Answer:
    """One request through the guard; `got` is what the application behind it received."""
    answer = Answer()
    answer.unread = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            answer.got += message["body"]
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Security-Policy", b"none")]})
        await send({"type": "http.response.body", "body": b"answered"})

    pieces = [body[k : k + piece] for k in range(0, len(body), piece)] or [b""]
    waiting = [
        {"type": "http.request", "body": part, "more_body": k < len(pieces) - 1} for k, part in enumerate(pieces)
    ]

    async def receive() -> Any:
        if not waiting:  # as uvicorn does while the client waits for its answer
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.pairs = message["headers"]
            answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message["body"]

    given = {"host": "127.0.0.1:7860", **(headers or {})}
    scope = {
        "type": "http", "method": method, "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    guard = Guard(behind, limits=limits or PageConfig(), uploads=uploads, root=uploads.parent)
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 30))
    answer.unread = waiting
    return answer


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index-1.js", "/static/img/a.svg", "/login", "/favicon.ico"]
    + [f"{API}/{name}" for name in ("info", "queue/data", "file=/tmp/a/b.mp4", "heartbeat/abc", "call/submit/12ab")],
)
def test_routes_of_the_page(path: str, uploads: Path) -> None:
    found = ask(uploads, "GET", path)
    assert (found.status, found.body) == (200, b"answered")
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert [name.lower() for name, _ in found.pairs].count(b"content-security-policy") == 1, (
        "the application's own goes"
    )


@pytest.mark.parametrize(
    "path",
    [f"{API}/proxy=https://example.org/", f"{API}/file=http://example.org/a.png", f"{API}/dev/reload", "/monitoring"]
    + ["/docs", "/runs", f"{API}/component_server", f"{API}/custom_component/a/b/c/d", f"{API}/run-history/records"]
    + ["/../etc/passwd", f"{API}/stream/1", f"{API}/run/a/../../proxy=x", "//example.org/", "/login/../runs"],
)
def test_no_other_routes(path: str, uploads: Path) -> None:
    found = ask(uploads, "GET", path)
    assert found.status in (400, 404)
    assert not found.got
    assert "detail" in json.loads(found.body)


def test_web_sockets_are_closed(uploads: Path) -> None:
    """An answer as to a request is an error of the server, with a traceback in its log."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def behind(*given: Any) -> None:
        raise AssertionError("let in")

    guard = Guard(behind, limits=PageConfig(), uploads=uploads, root=uploads)
    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close"}]


def file(path: Any) -> bytes:
    inside = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return json.dumps({"data": [None, {"deep": [inside]}]}).encode()


def test_uploads_may_be_named(uploads: Path) -> None:
    body = file(str(uploads / "a1" / "image.png"))
    found = ask(uploads, "POST", f"{API}/queue/join", body, JSON, piece=7)
    assert (found.status, found.got) == (200, body)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "https://example.org/a.png", "file:///etc/passwd", "uploads/../../etc/passwd", "a\0b", 7, ["x"]]
    + ["{uploads}/../other/a.png", "{uploads}/link/passwd", "{uploads}x/a.png"],
)
@pytest.mark.parametrize("route", ["queue/join", "run/look", "call/submit", "call/v2/submit"])
def test_no_other_file_may_be_named(path: Any, route: str, uploads: Path) -> None:
    (uploads / "link").symlink_to("/etc")
    named = path.format(uploads=uploads) if isinstance(path, str) else path
    found = ask(uploads, "POST", f"{API}/{route}", file(named), JSON)
    assert found.status == 400
    assert not found.got
    assert "upload the file" in json.loads(found.body)["error"]


def test_nothing_may_be_named(uploads: Path) -> None:
    """What was left empty."""
    body = file(None)
    found = ask(uploads, "POST", f"{API}/run/look", body, JSON)
    assert (found.status, found.got) == (200, body)


def test_a_login_is_a_form_or_looked_at_like_others(uploads: Path) -> None:
    found = ask(uploads, "POST", "/login", file("/etc/passwd"), JSON)
    assert (found.status, found.got) == (400, b"")


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json(body: bytes, uploads: Path) -> None:
    assert ask(uploads, "POST", f"{API}/run/look", body, JSON).status == 400


def test_sizes(uploads: Path) -> None:
    limits = PageConfig(max_upload_mb=1)
    upload, message = f"{API}/upload", f"{API}/run/live_exchange"
    assert ask(uploads, "POST", upload, b"x" * 1_000_000, limits=limits).status == 200
    declared = ask(uploads, "POST", upload, b"x", {"content-length": "2000000"}, limits)
    assert (declared.status, declared.got) == (413, b"")
    assert "at most 1 MB" in json.loads(declared.body)["error"]
    silent = ask(uploads, "POST", upload, b"x" * 3_000_000, limits=limits)  # nothing declared: counted
    assert silent.status == 413
    assert len(silent.got) < 1_200_000
    assert not silent.unread  # read to its end: who is cut off while sending never sees the answer
    assert ask(uploads, "POST", message, b'"' + b"x" * LARGEST_MESSAGE + b'"', JSON).status == 413
    assert ask(uploads, "POST", upload, b"x", {"content-length": "many"}, limits).status == 413


def test_an_upload_with_a_slash_is_an_upload(uploads: Path) -> None:
    found = ask(uploads, "POST", f"{API}/upload/", b"x" * 3_000_000, limits=PageConfig(max_upload_mb=4))
    assert (found.status, len(found.got)) == (200, 3_000_000)


def test_what_is_refused_is_not_read_for_ever(uploads: Path) -> None:
    found = ask(
        uploads, "POST", f"{API}/upload", b"x" * 40_000_000, limits=PageConfig(max_upload_mb=1), piece=1_000_000
    )
    assert found.status == 413
    assert 20 <= len(found.unread) < 30


def test_a_full_folder(uploads: Path) -> None:
    (uploads.parent / "job").write_bytes(b"x" * 1_000_001)
    assert folder_size(uploads.parent) == 1_000_101
    found = ask(uploads, "POST", f"{API}/upload", b"x", limits=PageConfig(disk_mb=1))
    assert found.status == 507
    assert ask(uploads, "POST", f"{API}/upload", b"x", limits=PageConfig(disk_mb=2)).status == 200


@pytest.mark.parametrize(
    ("host", "own", "status"),
    [
        ("127.0.0.1:7860", "127.0.0.1", 200),
        ("localhost:7860", "127.0.0.1", 200),
        ("[::1]:7860", "127.0.0.1", 200),
        ("evil.example:7860", "127.0.0.1", 403),  # a name that was pointed at this computer
        ("", "127.0.0.1", 403),
        ("studio.example:7860", "0.0.0.0", 200),
    ],
)
def test_hosts(host: str, own: str, status: int, uploads: Path) -> None:
    assert ask(uploads, "GET", "/", headers={"host": host}, limits=PageConfig(host=own)).status == status


@pytest.mark.parametrize(
    ("origin", "status"), [("http://127.0.0.1:7860", 200), ("https://evil.example", 403), ("null", 403)]
)
def test_other_sites(origin: str, status: int, uploads: Path) -> None:
    assert ask(uploads, "POST", f"{API}/run/look", b"{}", {"origin": origin, **JSON}).status == status


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "multipart/form-data; boundary=x", "x"])
def test_a_body_that_calls_itself_something_else_is_not_let_in(uploads: Path, kind: str) -> None:
    """Who parses it behind the guard might take it for JSON all the same."""
    body = b'{"data": [{"path": "/etc/passwd"}]}'
    found = ask(uploads, "POST", f"{API}/run/look", body, {"content-type": kind})
    assert (found.status, found.got) == (415, b"")
    form = ask(
        uploads, "POST", "/login", b"username=me&password=x", {"content-type": "application/x-www-form-urlencoded"}
    )
    assert form.status == 200
