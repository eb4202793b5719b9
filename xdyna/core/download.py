"""A file by its address: https, http of this machine, s3. Bounded in size and time, complete or not at all.

Published weights are fetched by `xdyna.core.hub`, which knows their hashes and goes on with what is half there; here is
what users name: nothing is known of it but what it should be.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdyna import __version__
from xdyna.core.atomic import atomic_output
from xdyna.core.errors import DownloadError
from xdyna.core.files import SPARE_BYTES
from xdyna.core.install import install_xdyna
from xdyna.core.progress import Watch

MEGA = 1_000_000
STAGE = "downloading"  # what progress is told under, in kB
_STALL = 30.0  # s without a byte after which a server is given up
_REDIRECTS = 5
_HEAD = 4096  # bytes that tell what a file is
_CHUNK = 1 << 16
_NO_MEDIA = re.compile(r"(text/|application/(json|xml|xhtml))", re.IGNORECASE)
_BY_HAND = "or download it by hand and give the file"


@dataclass(frozen=True)
class Limits:
    """What a download may take.

    Attributes:
        megabytes: most, in 10^6 bytes.
        seconds: most, from the first connection to the last byte.
    """

    megabytes: float
    seconds: float


@dataclass(frozen=True)
class Expected:
    """What a file should be.

    Attributes:
        ending: gives a file's ending by its first 4096 bytes; None for what it should not be.
        words: for messages.
    """

    ending: Callable[[bytes], str | None]
    words: str


@dataclass(frozen=True)
class _Stream:
    """An open transfer: `read` gives some bytes, none at the end; `size` is what the server announces, if it does."""

    read: Callable[[], bytes]
    size: int | None


def download(
    address: str, folder: Path, *, expected: Expected, limits: Limits, watch: Watch | None = None, name: str = "file"
) -> Path:
    """Fetch a file.

    Args:
        address: https://..., http://... on this machine (127.0.0.1, localhost, ::1), or s3://bucket/key.
        folder: where it goes; made where it is missing.
        expected: what it should be; looked at in the first bytes, before the rest is fetched.
        limits: of size and time.
        watch: told of the kB that are there, and asked whether to go on.
        name: of the file where the address has none.

    Returns:
        The complete file: named like the address's last part, with the ending of what it is.

    Raises:
        DownloadError: another kind of address, no answer, another file than expected, too large, too slow, cut off.
        FileError: the disk is full, or the folder cannot be written to.
        CancelledError: the caller wants to stop; nothing is kept.
    """
    watch, begun = watch or Watch(), time.monotonic()
    shown = _shown(address)
    check_address(address)
    most = int(limits.megabytes * MEGA)
    with _opened(address, shown, limits) as stream:
        if stream.size is not None and stream.size > most:
            raise DownloadError(_too_large(shown, f"has {stream.size / MEGA:.1f} MB", limits))
        head = b""
        while len(head) < _HEAD and (block := stream.read()):
            head += block
        ending = expected.ending(head[:_HEAD]) if head else None
        if ending is None:
            what = f"begins with {head[:12]!r}" if head else "is empty"
            raise DownloadError(f"{shown} {what}; expected {expected.words}")
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < (stream.size or 0) + SPARE_BYTES:
            raise DownloadError(
                f"{shown} needs {(stream.size or 0) / MEGA:.1f} MB in {folder}, where {free / MEGA:.1f} MB are free; "
                "make room, or set TMPDIR to another folder"
            )
        target = folder / f"{_file_name(address) or name}{ending}"
        with atomic_output(target) as temporary, temporary.open("wb") as file:
            done, block = 0, head
            while block:
                done += len(block)
                if done > most:
                    raise DownloadError(_too_large(shown, f"goes on after {limits.megabytes:g} MB", limits))
                if time.monotonic() - begun > limits.seconds:
                    raise DownloadError(_too_slow(shown, limits))
                file.write(block)
                watch.step(STAGE, done // 1000, max(stream.size or 0, done + 1000) // 1000)
                block = stream.read()
            if stream.size is not None and done != stream.size:
                raise DownloadError(
                    f"{shown} was cut off after {done} of {stream.size} bytes; nothing was kept: try again, {_BY_HAND}"
                )
    watch.step(STAGE, max(done // 1000, 1), max(done // 1000, 1))
    return target


def check_address(address: str, *, after: str | None = None) -> None:
    """See whether an address is one that is fetched.

    Args:
        address: what was given.
        after: the address that redirects to it; None where a user gave it.

    Raises:
        DownloadError: another kind, unprotected http to another machine, a password, or no host.
    """
    shown = _shown(address)
    said = f"{_shown(after)} redirects to {shown}: " if after else f"{shown}: "
    try:
        parts = urllib.parse.urlsplit(address)
        host, secret = parts.hostname, parts.password or parts.username
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise DownloadError(f"{said}{error}; expected https://HOST/PATH or s3://BUCKET/KEY") from error
    schemes = ("https", "http") if after else ("https", "http", "s3")
    if parts.scheme not in schemes or not host or re.search(r"[\x00-\x1f\x7f]", address):
        mend = "; give the path itself" if parts.scheme == "file" and not after else f", {_BY_HAND}"
        raise DownloadError(f"{said}expected https://HOST/PATH or s3://BUCKET/KEY{mend}")
    if secret:
        raise DownloadError(
            f"{said}a name or password in an address would be kept in run manifests; leave it out, {_BY_HAND}"
        )
    if parts.scheme == "http" and (not is_loopback(host) or (after is not None and not after.startswith("http://"))):
        raise DownloadError(
            f"{said}http:// is not protected, and is taken from this machine alone; expected https://, {_BY_HAND}"
        )


def is_loopback(host: str) -> bool:
    """Whether a host's name is one of this machine. Args: host: without port."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _opened(address: str, shown: str, limits: Limits) -> Iterator[_Stream]:
    """A transfer that ends in time; whatever its library raises becomes one sentence."""
    if address.startswith("s3://"):
        with _opened_s3(address, shown) as stream:
            yield stream
        return
    with _Deadline(limits.seconds) as deadline:
        with _explained(shown, limits, deadline):
            response = _answer(address, deadline)
        with contextlib.closing(response):
            size = _announced(response, shown)
            left = size

            def read() -> bytes:
                nonlocal left
                with _explained(shown, limits, deadline):
                    block = response.read1(_CHUNK if left is None else min(left, _CHUNK)) if left != 0 else b""
                if not block and deadline.over:  # a cut connection may look like the end of the file
                    raise DownloadError(_too_slow(shown, limits))
                left = None if left is None else left - len(block)
                return block

            yield _Stream(read, size)


@contextlib.contextmanager
def _explained(shown: str, limits: Limits, deadline: _Deadline) -> Iterator[None]:
    """Turn what the HTTP client raises into one message."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"{shown}: the server answers {error.code} ({error.reason}); see the address") from error
    except (OSError, http.client.HTTPException) as error:
        if deadline.over:
            raise DownloadError(_too_slow(shown, limits)) from error
        raise DownloadError(f"{shown} cannot be fetched ({_reason(error)}); see the network, {_BY_HAND}") from error


class _Deadline:
    """Cuts the connections made in its block when the time is over: each read would wait for one more byte."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for twin in self._sockets:
            twin.close()

    def connect(self, *address: Any, **options: Any) -> socket.socket:
        """As `socket.create_connection`; a twin of the socket is kept, since TLS takes the socket itself over."""
        made = socket.create_connection(*address, **options)
        self._sockets.append(made.dup())
        if self.over:
            self._cut()
        return made

    def _cut(self) -> None:
        self.over = True
        for twin in list(self._sockets):
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)


class _Connections(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https over connections that a deadline cuts."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__(context=ssl.create_default_context())
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._maker(http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._maker(http.client.HTTPSConnection), request, context=self._context)  # type: ignore[attr-defined]

    def _maker(self, kind: type[http.client.HTTPConnection]) -> Any:
        def make(host: str, **options: Any) -> http.client.HTTPConnection:
            connection = kind(host, **options)
            connection._create_connection = self._deadline.connect  # type: ignore[attr-defined]
            return connection

        return make


def _answer(address: str, deadline: _Deadline) -> http.client.HTTPResponse:
    """The server's answer, after at most five redirects, each of which is checked."""
    for _ in range(_REDIRECTS + 1):
        host = urllib.parse.urlsplit(address).hostname or ""
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler({} if is_loopback(host) else None),
            _Connections(deadline),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        headers = {"User-Agent": f"xdyna/{__version__}", "Accept-Encoding": "identity"}
        request = urllib.request.Request(urllib.parse.quote(address, safe=":/?#[]@!$&'()*+,;=%~"), headers=headers)
        try:
            return opener.open(request, timeout=_STALL)
        except urllib.error.HTTPError as error:
            location = error.headers.get("Location")
            if error.code not in (301, 302, 303, 307, 308) or not location:
                raise
            error.close()  # its body is not read: it may be endless
            following = urllib.parse.urljoin(address, location)
            check_address(following, after=address)
            address = following
    raise DownloadError(f"{_shown(address)}: more than {_REDIRECTS} redirects; give the address where they end")


def _announced(response: http.client.HTTPResponse, shown: str) -> int | None:
    """The size that the answer's head announces, if it does.

    Raises:
        DownloadError: it announces no file of images or video.
    """
    kind = response.headers.get("Content-Type", "")
    if _NO_MEDIA.match(kind):
        raise DownloadError(
            f"{shown} is a page or text ({kind}), no image or video; give the address of the file itself"
        )
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError(f"{shown} comes compressed, which was not asked for; download it by hand and give the file")
    given = response.headers.get("Content-Length", "")
    return int(given) if given.isdecimal() and response.length is not None else None


@contextlib.contextmanager
def _opened_s3(address: str, shown: str) -> Iterator[_Stream]:
    try:
        import fsspec

        patience = {"connect_timeout": 10, "read_timeout": _STALL, "retries": {"max_attempts": 2}}
        system, inner = fsspec.core.url_to_fs(address, config_kwargs=patience, skip_instance_cache=True)
    except ImportError as error:
        raise DownloadError(
            f"{shown}: s3:// needs a package that is not installed ({error}); run: {install_xdyna('s3')}, {_BY_HAND}"
        ) from error
    with _explained_s3(shown):
        size = system.size(inner)
        file = system.open(inner, "rb", cache_type="none")

    def read() -> bytes:
        with _explained_s3(shown):
            return bytes(file.read(16 * _CHUNK))

    with contextlib.closing(file):
        yield _Stream(read, None if size is None else int(size))


@contextlib.contextmanager
def _explained_s3(shown: str) -> Iterator[None]:
    """As `_explained`, for a client whose libraries have classes of their own."""
    try:
        yield
    except FileNotFoundError as error:
        raise DownloadError(f"{shown} does not exist, or may not be seen with your keys; see the address") from error
    except Exception as error:
        raise DownloadError(
            f"{shown} cannot be fetched ({_reason(error)}); see network and keys (AWS_PROFILE, AWS_ACCESS_KEY_ID, "
            f"AWS_ENDPOINT_URL), {_BY_HAND}"
        ) from error


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no byte for {_STALL:g} s"
    text = str(inner).strip()
    return text.splitlines()[0] if text else type(inner).__name__


def _shown(address: str) -> str:
    """An address for messages: in one line, without the query, which may hold keys, and without a password."""
    bare = re.sub(r"[\x00-\x1f\x7f]", "?", address.partition("?")[0].partition("#")[0])
    return re.sub(r"//[^/@]*@", "//", bare)[:200]


def _file_name(address: str) -> str:
    """What the address calls the file, without ending and with harmless characters only; "" where it has no name."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
    stem = Path(path.rpartition("/")[2]).stem
    return re.sub(r"[^\w-]+", "_", stem).strip("_")[:60]


def _too_large(shown: str, what: str, limits: Limits) -> str:
    return f"{shown} {what}; at most {limits.megabytes:g} MB are taken (url_max_mb): raise that, {_BY_HAND}"


def _too_slow(shown: str, limits: Limits) -> str:
    return f"{shown} was not there after {limits.seconds:g} s (url_seconds); nothing was kept: raise that, {_BY_HAND}"
