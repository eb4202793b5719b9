"""Files by their address: what comes is what was sent, or one sentence and nothing; no server can hold us up."""

import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec.registry  # noqa: F401
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.unit.core.file_server import Files, serving
from xdyna.core import download as module
from xdyna.core.download import Expected, Limits, check_address, download
from xdyna.core.errors import DownloadError
from xdyna.core.install import install_xdyna
from xdyna.core.progress import CancelledError, Watch

registry_of_fsspec = sys.modules["fsspec.registry"]  # `fsspec.registry` is a view with the same name
VIDEO = b"MINE" + np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MINE = Expected(lambda head: ".mine" if head.startswith(b"MINE") else None, "a file of mine")
LIMITS = Limits(megabytes=1, seconds=10)


@pytest.fixture
def server() -> Iterator[Files]:
    with serving({"/a%20dance.mp4": VIDEO, "/dance.mp4": VIDEO, "/page": b"<!doctype html>", "/empty": b""}) as files:
        yield files


def get(address: str, folder: Path, limits: Limits = LIMITS, watch: Watch | None = None) -> Path:
    return download(address, folder, expected=MINE, limits=limits, watch=watch, name="driving")


def refused(address: str, folder: Path, words: str, limits: Limits = LIMITS) -> None:
    """One sentence, soon, and nothing stays."""
    begun = time.monotonic()
    with pytest.raises(DownloadError, match=words) as caught:
        get(address, folder, limits)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 9, "the limit works, not the server's own end"
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("way", ["", "unsized/", "chunked/", "long/"])
def test_what_comes_is_what_was_sent(server: Files, tmp_path: Path, way: str) -> None:
    told: list[tuple[str, int, int]] = []
    path = get(f"{server.url}/{way}dance.mp4?v=1", tmp_path / "x", watch=Watch(lambda *step: told.append(step)))
    assert path == tmp_path / "x" / "dance.mine", "named by the address, with the ending of what it is"
    assert path.read_bytes() == VIDEO, "exactly what was announced, where a size was"
    assert [p.name for p in path.parent.iterdir()] == ["dance.mine"]
    assert {stage for stage, _, _ in told} == {"downloading"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (300, 300)
    if not way:
        assert told[0][2] == 300, "the total is what was announced"


def test_names_are_harmless(server: Files, tmp_path: Path) -> None:
    assert get(f"{server.url}/a dance.mp4", tmp_path).name == "a_dance.mine"
    server.files["/..%2f..%2fetc%00"] = VIDEO
    assert get(f"{server.url}/..%2f..%2fetc%00", tmp_path / "n").parent == tmp_path / "n"
    server.files["/.."] = VIDEO
    assert get(f"{server.url}/..", tmp_path / "m").name == "driving.mine"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("short/dance.mp4", r"cut off after 300004 of 301004 bytes; nothing was kept"),
        ("broken_chunks/dance.mp4", "cannot be fetched"),
        ("huge/dance.mp4", r"has 10000000.0 MB; at most 1 MB are taken \(url_max_mb\)"),
        ("bottomless/dance.mp4", "goes on after 1 MB; at most 1 MB"),
        ("page/page", "is a page or text .text/html"),
        ("page", "begins with b'<!doctype ht'; expected a file of mine"),
        ("packed/dance.mp4", "comes compressed"),
        ("empty", "is empty; expected a file of mine"),
        ("nothing", "the server answers 404"),
    ],
)
def test_a_server_that_lies(server: Files, tmp_path: Path, path: str, words: str) -> None:
    refused(f"{server.url}/{path}", tmp_path / "x", words)


@pytest.mark.parametrize("way", ["drip", "drip_head", "silent"])
def test_a_slow_server_ends_at_the_limit(server: Files, tmp_path: Path, way: str) -> None:
    refused(f"{server.url}/{way}/dance.mp4", tmp_path / "x", r"not there after 1 s \(url_seconds\)", Limits(1, 1))


def test_a_silent_server_is_given_up(server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALL", 0.5)
    refused(f"{server.url}/silent/dance.mp4", tmp_path / "x", "cannot be fetched .no byte for 0.5 s")


def test_redirects(server: Files, tmp_path: Path) -> None:
    for number in range(5):
        server.redirects[f"/r{number}"] = f"/r{number + 1}"
    server.redirects["/r5"] = f"{server.url}/dance.mp4"
    assert get(f"{server.url}/r1", tmp_path / "a").read_bytes() == VIDEO
    refused(f"{server.url}/r0", tmp_path / "x", "more than 5 redirects")
    server.redirects |= {"/loop": "/loop", "/endless/body": "/dance.mp4"}
    refused(f"{server.url}/loop", tmp_path / "x", "more than 5 redirects")
    assert get(f"{server.url}/endless/body", tmp_path / "b").read_bytes() == VIDEO, "a redirect's body is not read"
    for target in ("file:///etc/passwd", "http://192.0.2.1/a", "s3://bucket/key", "ftp://example.org/a"):
        server.redirects["/away"] = target
        refused(f"{server.url}/away", tmp_path / "x", f"away redirects to {target}: ")


def test_https_is_verified_and_stays_https(server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key = tmp_path / "both.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not here")
    trusted = tmp_path / "trusted.pem"
    trusted.write_text(pem.read_text())
    pem.write_text(pem.read_text() + key.read_text())
    with serving({"/dance.mp4": VIDEO}, certificate=pem) as safe:
        refused(f"{safe.url}/dance.mp4", tmp_path / "x", "certificate verify failed")
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert get(f"{safe.url}/dance.mp4", tmp_path / "a").read_bytes() == VIDEO
        refused(f"{safe.url}/drip/dance.mp4", tmp_path / "x", "not there after 1 s", Limits(1, 1))
        safe.redirects["/down"] = f"{server.url}/dance.mp4"
        refused(f"{safe.url}/down", tmp_path / "x", "http:// is not protected")
        assert server.requests == [], "this machine's own servers are not asked for another server's sake"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///etc/passwd", "file:///etc/passwd: expected https.*give the path itself"),
        ("http://example.org/a.mp4", "http:// is not protected"),
        ("http://localhost.example.org/a", "http:// is not protected"),
        ("http://127.0.0.1.example.org/a", "http:// is not protected"),
        ("ftp://example.org/a", "expected https://HOST/PATH or s3"),
        ("https://", "expected https"),
        ("https://a:x@example.org/a", "would be kept in run manifests"),
        ("https://example.org:port/", "Port could not be cast"),
        ("https://exa\nmple.org/", "expected https"),
        ("s3://", "expected https"),
    ],
)
def test_other_addresses_are_refused(tmp_path: Path, address: str, words: str) -> None:
    refused(address, tmp_path / "x", words)


def test_this_machine_by_all_its_names() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "127.9.9.9"):
        check_address(f"http://{host}:80/a")


def test_secrets_are_not_told(server: Files, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        get(f"{server.url}/nothing?X-Signature=secret", tmp_path)
    assert "secret" not in str(caught.value)
    with pytest.raises(DownloadError) as caught:
        get("https://me:secret@example.org/", tmp_path)
    assert "secret" not in str(caught.value)


def test_cancelling_keeps_nothing(server: Files, tmp_path: Path) -> None:
    steps: list[int] = []

    def cancel() -> bool:
        steps.append(1)
        return len(steps) > 2

    with pytest.raises(CancelledError):
        get(f"{server.url}/dance.mp4", tmp_path, watch=Watch(cancel=cancel))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**6))
    refused(f"{server.url}/dance.mp4", tmp_path / "x", "1.0 MB are free; make room, or set TMPDIR")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    """fsspec's own interface, with memory where the bucket is."""

    class Bucket(MemoryFileSystem):
        protocol = ("s3",)
        store: ClassVar[dict] = {}
        pseudo_dirs: ClassVar[list] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("s3://").strip("/")

    monkeypatch.setitem(registry_of_fsspec._registry, "s3", Bucket)
    return Bucket()


def test_s3(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    bucket.pipe("/videos/my dance.mp4", VIDEO)
    path = get("s3://videos/my dance.mp4", tmp_path)
    assert (path.name, path.read_bytes()) == ("my_dance.mine", VIDEO)
    refused("s3://videos/other.mp4", tmp_path / "x", "s3://videos/other.mp4 does not exist, or may not be seen")
    bucket.pipe("/videos/large.mp4", VIDEO * 4)
    refused("s3://videos/large.mp4", tmp_path / "x", "has 1.2 MB; at most 1 MB")


def test_s3_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registry_of_fsspec._registry, "s3", raising=False)
    refused(
        "s3://videos/a.mp4",
        tmp_path / "x",
        "needs a package that is not installed.*" + re.escape(f"run: {install_xdyna('s3')}"),
    )


def test_s3_with_its_package(server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs itself, against a server on this machine that answers as a bucket does."""
    pytest.importorskip("s3fs")
    monkeypatch.delitem(registry_of_fsspec._registry, "s3", raising=False)
    for name, value in {"ENDPOINT_URL": server.url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server.files["/videos/a/dance.mp4"] = VIDEO
    server.bucket = True
    assert get("s3://videos/a/dance.mp4", tmp_path).read_bytes() == VIDEO
    refused("s3://videos/a/other.mp4", tmp_path / "x", "s3://videos/a/other.mp4 does not exist, or may not be seen")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    refused("s3://videos/b/dance.mp4", tmp_path / "x", r"cannot be fetched .*see network and keys \(AWS_PROFILE")
