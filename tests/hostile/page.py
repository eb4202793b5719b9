"""Hostile visitors of the page: uploads, requests, wishes and messages of live animations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.hostile import images, keypoints, videos
from tests.hostile.case import SECRET, Case, Place, damaged, link

Content = Callable[[Place], bytes] | bytes
DEEP = "[" * 100_000


def upload(what: str, name: str, content: Content, *, works: bool = False) -> Case:
    """A file that is sent. Args: what: "image" or "video"."""

    def make(place: Place) -> Sequence[str]:
        made = content if isinstance(content, bytes) else content(place)
        return [what, place.put("uploads/a1/sent", made)]

    return Case("page", f"{what}, {name}", make, program="tests.hostile.entries", works=works)


def named(what: str, name: str, path: Callable[[Place], str]) -> Case:
    """A path that a client names as its upload."""

    def make(place: Place) -> Sequence[str]:
        place.put("uploads/a1/sent", (place.shared / "ref.png").read_bytes())
        return [what, path(place)]

    return Case("page", f"{what} named {name}", make, program="tests.hostile.entries")


def request(name: str, path: str, body: Content = b"", *, method: str = "POST", **headers: str) -> Case:
    """A request that must not be let in."""

    def make(place: Place) -> Sequence[str]:
        made = body if isinstance(body, bytes) else body(place)
        sent = place.put("body", made)
        place.put("uploads/a1/sent", b"x")
        return ["http", method, path.replace("SECRETS", str(place.secret)), sent, json.dumps(headers)]

    return Case("page", f"request, {name}", make, program="tests.hostile.entries")


def wish(name: str, **values: Any) -> Case:
    """What a visitor asks for, with something that is not in the form."""

    def make(place: Place) -> Sequence[str]:
        image = place.put("uploads/a1/image", (place.shared / "ref.png").read_bytes())
        video = place.put("uploads/a2/video", (place.shared / "poses.mp4").read_bytes())
        asked = {"image": image, "video": video, "mode": "exact", "frames": 2, "steps": 1, "seed": 1, "align": False}
        return ["wish", place.put("wish.json", json.dumps({**asked, **values}))]

    return Case("page", f"wish, {name}", make, program="tests.hostile.entries")


def message(name: str, text: str) -> Case:
    """A message of a live animation."""
    works = name in ("no body", "confidence 7", "booleans", "after 10^30", "an image for a skeleton", "body and image")

    def make(place: Place) -> Sequence[str]:
        return ["live", place.put("message", text)]

    return Case("page", f"live, {name}", make, program="tests.hostile.entries", works=works)


def _linked(place: Place) -> str:
    return link(place.given / "uploads" / "a1" / "link", place.secret / "word.txt")


def _linked_folder(place: Place) -> str:
    return link(place.given / "uploads" / "a3", place.secret) + "/word.txt"


def _pipe(place: Place) -> str:
    (place.given / "uploads" / "a1").mkdir(parents=True, exist_ok=True)
    os.mkfifo(place.given / "uploads" / "a1" / "pipe")
    return str(place.given / "uploads" / "a1" / "pipe")


PATHS: dict[str, Callable[[Place], str]] = {
    "the secret": lambda place: str(place.secret / "word.txt"),
    "a way back": lambda place: f"{place.given}/uploads/../../secret/word.txt",
    "a link": _linked,
    "a linked folder": _linked_folder,
    "a pipe": _pipe,
    "a folder": lambda place: f"{place.given}/uploads/a1",
    "the folder": lambda place: f"{place.given}/uploads",
    "a neighbour": lambda place: f"{place.given}/uploads-evil/sent",
    "/dev/zero": lambda place: "/dev/zero",
    "/etc/passwd": lambda place: "/etc/passwd",
    "zero letters": lambda place: f"{place.given}/uploads/a1/se\0nt",
    "nothing": lambda place: "",
    "5,000 letters": lambda place: f"{place.given}/uploads/" + "x" * 5000,
    "a URL": lambda place: "http://127.0.0.1:9/a.png",
    "a surrogate": lambda place: f"{place.given}/uploads/\udcff",
}
BODY = '{{"data": [{{"path": {}, "meta": {{"_type": "gradio.FileData"}}}}]}}'
BODIES: dict[str, Content] = {
    "a secret": lambda place: BODY.format(json.dumps(str(place.secret / "word.txt"))).encode(),
    "a secret, deep": lambda place: ('{"a":' * 300 + BODY.format(json.dumps(str(place.secret))) + "}" * 300).encode(),
    "a way back": lambda place: BODY.format(json.dumps(f"{place.given}/uploads/../../secret/word.txt")).encode(),
    "an address": BODY.format('"http://127.0.0.1:9/x"').encode(),
    "a file address": BODY.format('"file:///etc/passwd"').encode(),
    "a number": BODY.format("7").encode(),
    "a list": BODY.format('["/etc/passwd"]').encode(),
    "an object": BODY.format('{"path": "/etc/passwd"}').encode(),
    "zero letters": BODY.format('"/etc\\u0000/passwd"').encode(),
    "escaped": BODY.format('"\\u002fetc\\u002fpasswd"').encode(),
    "twice": b'{"path": null, "data": [{"path": "/etc/passwd"}]}',
    "nested": DEEP.encode(),
    "no JSON": b"hello",
    "half": b'{"data": [',
    "not UTF-8": b'{"data": "\xff\xfe"}',
    "UTF-16": '{"data": [{"path": "/etc/passwd"}]}'.encode("utf-16"),
    "UTF-7": b'{"data": [{"path": "+AC8-etc+AC8-passwd"}]}',
    "huge": b"[" + b"0," * 2_000_000 + b"0]",
    "a big number": b"9" * 100_000,
}
ROUTES = ["/../etc/passwd", "/gradio_api/proxy=http://x", "/gradio_api/run/../../x", "/docs",
          "/gradio_api/component_server", "/gradio_api/deep_link", "/gradio_api/process_recording", "/gradio_api/vibe-code/",
          "/gradio_api/file=http://127.0.0.1:9/x", "/admin", "//evil", "/gradio_api/launch", "/.git/config", "/\n", "/%2e%2e/"]  # fmt: skip
WISHES: dict[str, dict[str, Any]] = {
    "mode a path": {"mode": "../../secret/word"},
    "mode a list": {"mode": ["fast"]},
    "mode null": {"mode": None},
    "mode of an object": {"mode": {"a": 1}},
    "frames 10^30": {"frames": 1e30},
    "frames NaN": {"frames": float("nan")},
    "frames -1": {"frames": -1},
    "frames text": {"frames": "2"},
    "frames 1.5": {"frames": 1.5},
    "steps 10^6": {"steps": 10**6},
    "steps true": {"steps": True},
    "steps a list": {"steps": [1]},
    "seed -1": {"seed": -1},
    "seed 10^40": {"seed": 10**40},
    "seed infinite": {"seed": float("inf")},
    "a person of text": {"person": "1"},
    "person 10^30": {"person": 1e30},
    "a search that is none": {"crowd": "../../secret/word"},
    "a search as a list": {"crowd": ["all"]},
    "a crop that is none": {"crop": "../../secret/word"},
    "a crop as an object": {"crop": {"a": 1}},
    "no image": {"image": None},
    "no video": {"video": None},
    "an image by its number": {"image": 7},
    "an image as a list": {"image": ["/etc/passwd"]},
    "a video as an object": {"video": {"path": "/etc/passwd"}},
    "a video of the machine": {"video": "/etc/passwd"},
}
POINTS = [[1.0, 1.0, 1.0]] * 18
LIVE: dict[str, str] = {
    "nested": DEEP,
    "a list": "[]",
    "null": "null",
    "no body": '{"body": null}',
    "17 joints": json.dumps({"body": POINTS[:17]}),
    "text for a joint": json.dumps({"body": [["a", 1, 1], *POINTS[1:]]}),
    "NaN": json.dumps({"body": [[float("nan"), 1, 1], *POINTS[1:]]}),
    "infinite": json.dumps({"body": [[float("inf"), 1, 1], *POINTS[1:]]}),
    "1e300": json.dumps({"body": [[1e300, 1, 1], *POINTS[1:]]}),
    "10^400": '{"body": [[1' + "0" * 400 + ", 1, 1]" + ", [1, 1, 1]" * 17 + "]}",
    "confidence 7": json.dumps({"body": [[1, 1, 7], *POINTS[1:]]}),
    "a body of objects": json.dumps({"body": {"0": 1}}),
    "a ragged body": json.dumps({"body": [[1], *POINTS[1:]]}),
    "booleans": json.dumps({"body": [[True, True, True]] * 18}),
    "after text": json.dumps({"body": POINTS, "after": "x"}),
    "after 10^30": json.dumps({"body": POINTS, "after": 10**30}),
    "after infinite": '{"after": Infinity}',
    "a big number": "9" * 100_000,
    "2 MB": json.dumps({"image": "A" * 3_000_000}),
    "an image for a skeleton": json.dumps({"image": "AAAA"}),
    "body and image": json.dumps({"image": "AAAA", "body": POINTS}),
}


def cases() -> Iterator[Case]:
    """All of them; those that are damaged at random are numbered."""
    for name in ("32 bit floats", "SVG", "HTML", "EPS", "PNG with a text bomb", "PNG of 3 bits", "BMP of 2^31 px", "TIFF of 2^31 strips",
                 "TIFF of 100,000 px", "a zip bomb", "zeros", "empty"):  # fmt: skip
        yield upload("image", name, images.BAD[name][0])
    for width, height in images.SIZES:
        yield upload("image", f"PNG of {width} x {height}", images.png(width, height))
    for name, text in videos.LISTS.items():
        yield upload("video", f"list {name}", videos.playlist(text))
    yield upload("video", "all frames ten days apart", videos.made(frames=3, stamps=(0, 1, 864_000_000), kind="mkv"))
    yield upload(
        "video", "10,000 frames in a second", videos.made(frames=20, stamps=range(20), base=10_000), works=True
    )
    yield upload("video", "keypoints", keypoints.changed())
    yield upload("video", "a song", lambda place: (place.shared / "song.m4a").read_bytes())
    yield upload("video", "AVI of 2^31 px", videos.avi(width=2**31 - 1, height=2**31 - 1), works=True)
    for number in range(6):
        yield upload(
            "video", f"damaged {number}", lambda place: damaged(videos.sound(place), place.random()), works=True
        )
        yield upload(
            "image", f"damaged {number}", lambda place: damaged(images.noise("JPEG"), place.random()), works=True
        )
    for what in ("image", "video"):
        for name, path in PATHS.items():
            yield named(what, name, path)
    for name, body in BODIES.items():
        yield request(f"body of {name}", "/gradio_api/run/look", body, **{"content-type": "application/json"})
        if name not in ("no JSON", "not UTF-8", "huge", "nested", "half", "UTF-7"):
            yield request(f"body of {name}, as text", "/gradio_api/run/look", body, **{"content-type": "text/plain"})
    for route in ROUTES:
        yield request(f"route {route!r}", route, method="GET")
    yield request("a foreign host", "/", method="GET", host="evil.example")
    yield request("a foreign origin", "/gradio_api/run/look", b"{}", origin="http://evil.example")
    yield request("a huge length", "/gradio_api/upload", b"x", **{"content-length": "9" * 30})
    yield request("a negative length", "/gradio_api/upload", b"x", **{"content-length": "-1"})
    yield request("a length of text", "/gradio_api/upload", b"x", **{"content-length": "x"})
    for name, values in WISHES.items():
        yield wish(name, **values)
    for name, text in LIVE.items():
        yield message(name, text)


assert SECRET
