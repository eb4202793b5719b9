"""xdyna.core.hub against a server on this machine that speaks the Hub's protocol."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.utils
import pytest
import yaml

from xdyna.core.errors import WeightsError
from xdyna.core.hub import REGISTRY, DownloadError, HubFile, fetch, load_registry, missing, plan

CONTENT = bytes(i * 7 % 251 for i in range(100_000))
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = HubFile(
    repo="owner/repo",
    path="sub/weights.bin",
    purpose="test",
    uses=("animate",),
    license="MIT",
    size=len(CONTENT),
    sha256=DIGEST,
)


@dataclass
class Hub:
    """What the server answers and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""
    cuts: list[int] = field(default_factory=list)  # bytes after which the next connections break
    ignore_range: bool = False
    redirect_to: str = ""
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)  # method, path, range, authorization
    endpoint: str = ""

    def gets(self) -> list[str]:
        return [ranges for method, path, ranges, _ in self.requests if method == "GET" and "/api/" not in path]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub = self.hub
        ranges, auth = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        hub.requests.append((self.command, self.path, ranges, auth))
        tree = re.fullmatch(r"/api/models/owner/repo/tree/main(\?.*)?", self.path)
        if tree:
            listing = [{"type": "file", "path": p, "oid": "0" * 40, "size": len(c)} for p, c in hub.files.items()]
            return self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        path = self.path.removeprefix("/owner/repo/resolve/main/").removeprefix("/cdn/")
        if hub.status != 200:
            return self.send(hub.status, b"", {"X-Error-Code": hub.error_code} if hub.error_code else {})
        if path not in hub.files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = hub.files[path]
        etag = hub.etags.get(path, hashlib.sha256(content).hexdigest())
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40, "X-Linked-Etag": f'"{etag}"'}
        headers["X-Linked-Size"] = str(len(content))
        if hub.redirect_to and not self.path.startswith("/cdn/"):
            return self.send(302, b"", {**headers, "Location": f"{hub.redirect_to}/cdn/{path}"})
        status, begin = 200, 0
        if ranges and not hub.ignore_range:
            status, begin = 206, int(re.fullmatch(r"bytes=(\d+)-", ranges)[1])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return self.send(status, content[begin:], headers, cut=hub.cuts.pop(0) if body and hub.cuts else None)

    def send(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
            self.wfile.flush()
        if cut is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def serve(hub: Hub) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    return server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # What arrives is written in pieces of this size; a piece that is cut off is lost.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    huggingface_hub.utils.close_session()  # one that was made earlier knows nothing of the settings above
    hub = Hub(files={"sub/weights.bin": CONTENT})
    server = serve(hub)
    yield hub
    server.shutdown()
    server.server_close()


def get(hub: Hub, folder: Path, file: HubFile = FILE, **options: str) -> Path:
    return fetch(file, folder, endpoint=hub.endpoint, progress=False, **options)


def fails(hub: Hub, folder: Path, *expected: str, file: HubFile = FILE) -> str:
    with pytest.raises(DownloadError) as caught:
        get(hub, folder, file)
    text = str(caught.value)
    assert "\n" not in text
    for part in expected:
        assert part in text
    return text


def visible(folder: Path) -> list[str]:
    """Files under their final names."""
    return [p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]


def partials(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*.incomplete") if p.is_file()]


def by_hand(hub: Hub, folder: Path) -> str:
    return (
        f"Or download {hub.endpoint}/owner/repo/resolve/main/sub/weights.bin by hand and save it as {folder}/repo/sub"
    )


def test_fetch(hub: Hub, tmp_path: Path) -> None:
    path = get(hub, tmp_path / "d")
    assert path == tmp_path / "d" / "repo" / "sub" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert hub.gets() == [""]
    assert not partials(tmp_path)


def test_fetch_again_asks_nothing(hub: Hub, tmp_path: Path) -> None:
    get(hub, tmp_path)
    hub.requests.clear()
    get(hub, tmp_path)
    assert hub.requests == []


def test_redirect_to_another_host_does_not_carry_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.redirect_to = hub.endpoint.replace("127.0.0.1", "localhost")
    assert get(hub, tmp_path, token="hf_secret").read_bytes() == CONTENT
    seen = {path.startswith("/cdn/"): auth for _, path, _, auth in hub.requests}
    assert seen == {False: "Bearer hf_secret", True: ""}


def test_cut_connection_goes_on_by_itself(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [1000, 30_000]
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.gets() == ["", "bytes=1000-", "bytes=31000-"]


def test_interrupted_download_goes_on_in_the_next_run(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [40_000] + [0] * 20
    text = fails(hub, tmp_path, "cannot be fetched", "what was downloaded is kept")
    assert by_hand(hub, tmp_path) in text
    assert visible(tmp_path) == []
    assert [p.stat().st_size for p in partials(tmp_path)] == [40_000]
    hub.cuts, hub.requests = [], []
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.gets() == ["bytes=40000-"]
    assert not partials(tmp_path)


def test_interrupted_by_the_keyboard(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url: str, handle: object, **options: object) -> None:
        handle.write(CONTENT[:500])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xdyna.core.hub.http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(hub, tmp_path)
    assert visible(tmp_path) == []
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.gets() == ["bytes=500-"]


def test_a_server_without_ranges_sends_everything_again(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.ignore_range = [1000], True
    assert get(hub, tmp_path).read_bytes() == CONTENT


def test_the_beginning_of_another_version_is_not_used(hub: Hub, tmp_path: Path) -> None:
    file = dataclasses.replace(FILE, size=None, sha256=None)
    hub.cuts = [40_000] + [0] * 20
    fails(hub, tmp_path, file=file)
    new = bytes(reversed(CONTENT))
    hub.files["sub/weights.bin"], hub.cuts, hub.requests = new, [], []
    assert get(hub, tmp_path, file).read_bytes() == new
    assert hub.gets() == [""]
    assert not partials(tmp_path)


@pytest.mark.parametrize("position", [0, 50_000, len(CONTENT) - 1])
def test_a_changed_byte_is_an_error(hub: Hub, tmp_path: Path, position: int) -> None:
    changed = bytearray(CONTENT)
    changed[position] ^= 1
    hub.files["sub/weights.bin"] = bytes(changed)
    hub.etags["sub/weights.bin"] = DIGEST  # the server does not notice
    text = fails(hub, tmp_path, "has other bytes than expected", DIGEST, "it was removed")
    assert by_hand(hub, tmp_path) in text
    assert visible(tmp_path) == []
    assert not partials(tmp_path)


def test_a_changed_byte_is_an_error_without_a_hash_in_the_table(hub: Hub, tmp_path: Path) -> None:
    hub.files["sub/weights.bin"] = CONTENT[:-1] + b"?"
    hub.etags["sub/weights.bin"] = DIGEST
    fails(hub, tmp_path, "has other bytes than expected", file=dataclasses.replace(FILE, size=None, sha256=None))
    assert visible(tmp_path) == []


def test_small_files_are_checked_by_gits_hash(hub: Hub, tmp_path: Path) -> None:
    file = dataclasses.replace(FILE, path="config.json", size=None, sha256=None)
    hub.files["config.json"] = b"hello\n"
    hub.etags["config.json"] = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of "hello\n"
    assert get(hub, tmp_path, file).read_bytes() == b"hello\n"
    hub.files["config.json"] = b"hellO\n"
    fails(hub, tmp_path / "other", "has other bytes than expected", file=file)


def test_a_damaged_beginning_is_found(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [40_000] + [0] * 20
    fails(hub, tmp_path)
    partial = partials(tmp_path)[0]
    partial.write_bytes(b"x" + partial.read_bytes()[1:])
    hub.cuts = []
    fails(hub, tmp_path, "has other bytes than expected")
    assert not partials(tmp_path)
    assert get(hub, tmp_path).read_bytes() == CONTENT


def test_a_beginning_longer_than_the_file_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [40_000] + [0] * 20
    fails(hub, tmp_path)
    partials(tmp_path)[0].write_bytes(CONTENT + b"too long")
    hub.cuts, hub.requests = [], []
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.gets() == [""]


def test_a_replaced_file_is_refused_before_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.files["sub/weights.bin"] = CONTENT + b"more"
    fails(hub, tmp_path, "was replaced", f"bytes {len(CONTENT) + 4}, expected {len(CONTENT)}", "registry.yaml")
    hub.files["sub/weights.bin"] = bytes(len(CONTENT))
    fails(hub, tmp_path, "was replaced", f"expected {DIGEST}")
    assert hub.gets() == []


def test_an_existing_wrong_file_is_reported_and_kept(hub: Hub, tmp_path: Path) -> None:
    path = FILE.target(tmp_path)
    path.parent.mkdir(parents=True)
    for content, expected in ((b"short", "has 5 bytes"), (bytes(len(CONTENT)), "has other bytes")):
        path.write_bytes(content)
        fails(hub, tmp_path, expected, "remove it and fetch it again")
        assert path.read_bytes() == content
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "EntryNotFound", "has no file sub/weights.bin"),
        (401, "GatedRepo", "license to be accepted"),
        (403, "GatedRepo", "hf auth login"),
        (401, "RepoNotFound", "does not exist or is not open to you"),
        (404, "RepoNotFound", "does not exist or is not open to you"),
        (403, "", "HTTP 403"),
        (500, "", "HTTP 500"),
    ],
)
def test_refusals(hub: Hub, tmp_path: Path, status: int, code: str, expected: str) -> None:
    hub.status, hub.error_code, hub.files = status, code, {}
    assert by_hand(hub, tmp_path) in fails(hub, tmp_path, expected)
    assert visible(tmp_path) == []


def test_server_down(hub: Hub, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    assert by_hand(hub, tmp_path) in fails(hub, tmp_path, "cannot be fetched", "check the network")


def test_offline_mode(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.utils.close_session()  # the mode is read when a session is made
    try:
        fails(hub, tmp_path, "cannot be fetched", "offline", "HF_HUB_OFFLINE")
    finally:
        monkeypatch.undo()
        huggingface_hub.utils.close_session()
    assert hub.requests == []


def test_full_disk_is_seen_before_the_download(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("xdyna.core.hub.shutil.disk_usage", lambda path: usage._replace(free=1000))
    fails(hub, tmp_path, "needs 0.07 GB", "make room")
    assert hub.gets() == []


def test_unwritable_folder(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "repo").write_text("a file where the folder should be")
    fails(hub, tmp_path, "cannot be written")


def test_a_moved_file_is_found_by_its_name(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"elsewhere/weights.bin": CONTENT, "README.md": b""}
    assert get(hub, tmp_path) == FILE.target(tmp_path)
    assert FILE.target(tmp_path).read_bytes() == CONTENT


def test_a_name_that_occurs_twice_is_not_guessed(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a/weights.bin": CONTENT, "b/weights.bin": CONTENT}
    fails(hub, tmp_path, "has no file sub/weights.bin")


def test_a_file_that_is_not_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched from the address in the table without asking the Hub, resumed and checked; no token goes there."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    file = dataclasses.replace(FILE, base=f"{hub.endpoint}/owner/repo/resolve/main")
    hub.cuts = [40_000] + [0] * 20
    fails(hub, tmp_path, "cannot be fetched", f"{file.base}/{file.path}", file=file)
    kept = partials(tmp_path)[0].stat().st_size
    assert kept > 0
    hub.cuts, hub.requests = [], []
    assert fetch(file, tmp_path, progress=False).read_bytes() == CONTENT
    assert hub.gets() == [f"bytes={kept}-"]
    assert [(method, authorization) for method, _, _, authorization in hub.requests] == [("GET", "")]
    other = dataclasses.replace(file, sha256="0" * 64)
    fails(hub, tmp_path / "other", "has other bytes than expected", file=other)
    assert visible(tmp_path / "other") == []


# The table


def test_registry_is_well_formed() -> None:
    files = load_registry()
    raw = yaml.safe_load(REGISTRY.read_text())["repositories"]
    assert len(files) == sum(len(group["files"]) for group in raw), "two files share a name"
    names = set(files)
    for published in ("unet-checkpoint-epoch-5", "controlnet-checkpoint-epoch-5", "controlnet-face-checkpoint-epoch-2"):
        assert f"X-Dyna/{published}.ckpt" in names
    for file in files.values():
        assert file.purpose
        assert file.license
        assert file.url().startswith("https://")
        assert file.url().endswith(file.path if file.base else f"{file.repo}/resolve/main/{file.path}")


def test_every_file_of_the_table_can_be_fetched_by_its_name(hub: Hub, tmp_path: Path) -> None:
    targets = {file.target(tmp_path) for file in load_registry().values()}
    assert all(tmp_path in target.parents for target in targets)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "repositories: 3",
        "repositories: [{repo: a/b}]",
        "repositories: [{repo: a/b, license: x, files: [{path: p, purpose: q, uses: [cook]}]}]",
        "repositories: [{repo: a/b, license: x, files: [{path: ../p, purpose: q, uses: []}]}]",
        "repositories: [{repo: a/b, license: x, files: [{path: p, purpose: q, uses: [], sha256: abc}]}]",
        "repositories: [{repo: a/b, license: x, files: [{path: p, purpose: q, uses: [], colour: red}]}]",
        "repositories: [{repo: a/b, base: 'https://c', license: x, files: [{path: p, purpose: q, uses: [], size: 3}]}]",
        "a: [",
    ],
)
def test_malformed_tables(tmp_path: Path, content: str) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(content)
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        load_registry(path)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="source checkout"):
        load_registry(tmp_path / "none.yaml")


def test_plan(tmp_path: Path) -> None:
    files = [dataclasses.replace(FILE, path=f"{i}", size=size) for i, size in enumerate((3, 4, 5, None, None))]
    for file, content in ((files[0], b"abc"), (files[1], b"abc"), (files[3], b"abc")):
        file.target(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        file.target(tmp_path).write_bytes(content)
    found = plan(tmp_path, files)
    assert found.present == (files[0], files[3])
    assert found.missing == (files[2], files[4])
    assert found.wrong == (files[1],)
    assert (found.known_bytes, found.unknown) == (9, 1)
    assert found.summary() == (
        "2 files present, 2 missing, 1 of a wrong size (repo/1); to download: 0.00 GB and 1 files of unknown size"
    )


def test_missing_by_use(tmp_path: Path) -> None:
    animate, train = missing(tmp_path), missing(tmp_path, use="train")
    assert all("animate" in file.uses for file in animate)
    assert "animatediff/mm_sd_v15.ckpt" in {file.name for file in train} - {file.name for file in animate}
    path = animate[0].target(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert missing(tmp_path) == animate[1:]


def test_progress_bars_are_left_as_they_were(hub: Hub, tmp_path: Path) -> None:
    before = huggingface_hub.utils.are_progress_bars_disabled()
    get(hub, tmp_path)
    assert huggingface_hub.utils.are_progress_bars_disabled() == before
    assert os.listdir(FILE.target(tmp_path).parent) == ["weights.bin"]
