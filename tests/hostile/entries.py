"""Doors that have no command line of their own: a file of tensors, the page's uploads, requests, wishes, live messages.

main(["weights", FILE]) | ["image" or "video", FILE] | ["http", METHOD, PATH, FILE, HEADERS] | ["wish", FILE]
| ["live", FILE]
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xdyna.config.page import PageConfig

LIMITS = PageConfig(device="cpu", max_frames=40)


def main(argv: Sequence[str]) -> int:
    """What a door says: 0 let in, an exception otherwise."""
    kind, *rest = argv
    {"weights": _weights, "image": _upload, "video": _upload, "http": _request, "wish": _wish, "live": _live}[kind](
        *([kind, *rest] if kind in ("image", "video") else rest)
    )
    return 0


def _weights(path: str) -> None:
    from xdyna.checkpoints.io import check_finite, load_state_dict

    check_finite(load_state_dict(path), what=path)


def _upload(kind: str, path: str) -> None:
    from xdyna.page.uploads import take_image, take_video

    uploads = Path(os.environ["HOSTILE_GIVEN"]) / "uploads"
    try:
        (take_image if kind == "image" else take_video)(path, uploads, Path("job"), LIMITS)
    finally:
        shutil.rmtree("job", ignore_errors=True)  # as whoever made the folder does


def _request(method: str, path: str, body: str, headers: str) -> None:
    """One request through the guard. Raises: ValueError: it was refused, as it should."""
    from xdyna.page.guard import Guard

    content = Path(body).read_bytes()
    status, said, reached = 0, b"", False
    pieces = [content[k : k + 65536] for k in range(0, len(content), 65536)] or [b""]
    waiting = [{"type": "http.request", "body": p, "more_body": k < len(pieces) - 1} for k, p in enumerate(pieces)]

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        nonlocal reached
        while (await receive()).get("more_body"):
            pass
        reached = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, said
        status = message.get("status", status)
        said += message.get("body", b"")

    given = {"host": "127.0.0.1:7860", **json.loads(headers)}
    scope = {"type": "http", "method": method, "path": path,
             "headers": [(k.encode(), v.encode()) for k, v in given.items()]}  # fmt: skip
    uploads = Path(os.environ["HOSTILE_GIVEN"]) / "uploads"
    asyncio.run(Guard(behind, limits=LIMITS, uploads=uploads, root=uploads)(scope, receive, send))
    if reached:
        return
    assert 400 <= status < 500, status
    raise ValueError(json.loads(said)["error"])


@functools.cache
def _studio(root: str) -> Any:
    from xdyna.page.studio import Studio

    return Studio(Path(root), Path(root) / "uploads", LIMITS, checkpoint=Path("xdyna-tiny"))


def _wish(path: str) -> None:
    from xdyna.page.studio import Wish

    studio = _studio(os.environ["HOSTILE_SCRATCH"])
    studio.uploads = Path(os.environ["HOSTILE_GIVEN"]) / "uploads"
    try:
        studio.request(Wish(**json.loads(Path(path).read_text())), Path("job"))
    finally:
        shutil.rmtree("job", ignore_errors=True)


@functools.cache
def _room() -> Any:
    """Rooms with one whose thread never starts."""
    from xdyna.config.live import LiveConfig
    from xdyna.page.rooms import Feed, Room, Rooms

    rooms = Rooms(LIMITS, LiveConfig(), str)
    feed = Feed("skeleton", rooms.puppet, None)
    room = Room(feed, LiveConfig(), LIMITS, model=lambda: None, turn=rooms._turn, explain=str)  # type: ignore[arg-type, return-value]
    rooms._rooms[room.id] = room
    return rooms, room.id


def _live(path: str) -> None:
    rooms, name = _room()
    json.dumps(rooms.exchange(name, Path(path).read_text()), allow_nan=False)
