"""A web server on this machine that gives files, and misbehaves in every way that a download must survive."""

import contextlib
import http.server
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STOP = 20.0  # s after which the misbehaviour ends, so that a test whose limit does not work fails instead of hanging


@dataclass
class Files:
    """What the server gives.

    Attributes:
        files: by path.
        redirects: path -> address.
        requests: paths that were asked for, in order.
        ended: how many answers the client cut off.
        bucket: answer as an S3 server does: /BUCKET/KEY, ranges, HEAD.
        url: of the server.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ended: int = 0
    bucket: bool = False
    url: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    """/PATH gives a file; /short/PATH, /long/PATH, /unsized/PATH, /endless/PATH, /slow/PATH, /drip/PATH, ... badly."""

    shared: Files

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.object(body=False)

    def object(self, *, body: bool) -> None:
        content = self.shared.files.get(self.path.partition("?")[0])
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = 0, len(content) - 1
        if given := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(given[1]), min(int(given[2]), last)
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sun, 29 Nov 2026 09:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(content[first : last + 1])

    def do_GET(self) -> None:
        self.shared.requests.append(self.path)
        if self.shared.bucket:
            self.object(body=True)
            return
        _, way, *rest = self.path.partition("?")[0].split("/")
        try:
            if target := self.shared.redirects.get(self.path):
                self.send_response(302)
                self.send_header("Location", target)
                self.end_headers()
                if way == "endless":
                    self.endless(b"x" * 65536)
            elif rest:
                getattr(self, way)(self.shared.files["/" + "/".join(rest)])
            elif (content := self.shared.files.get(self.path.partition("?")[0])) is None:
                self.send_error(404)
            else:
                self.head(len(content))
                self.wfile.write(content)
        except OSError:
            self.shared.ended += 1

    def head(self, size: int | None, kind: str = "application/octet-stream", **more: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def endless(self, block: bytes, pause: float = 0.0) -> None:
        until = time.monotonic() + STOP
        while time.monotonic() < until:
            self.wfile.write(block)
            time.sleep(pause)

    def short(self, content: bytes) -> None:  # announces more than comes
        self.head(len(content) + 1000)
        self.wfile.write(content)

    def long(self, content: bytes) -> None:  # announces less than comes, and goes on for ever
        self.head(len(content))
        self.endless(content)

    def unsized(self, content: bytes) -> None:
        self.head(None)
        self.wfile.write(content)

    def bottomless(self, content: bytes) -> None:  # no size, no end
        self.head(None)
        self.endless(content)

    def chunked(self, content: bytes) -> None:
        self.head(None, Transfer_Encoding="chunked")
        for start in range(0, len(content), 1000):
            part = content[start : start + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def broken_chunks(self, content: bytes) -> None:
        self.head(None, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%s" % (len(content) + 500, content))

    def huge(self, content: bytes) -> None:
        self.head(10**13)
        self.wfile.write(content)

    def drip(self, content: bytes) -> None:  # a byte now and then: no single wait is long
        self.head(None)
        self.wfile.write(content)
        self.endless(b"x", 0.05)

    def drip_head(self, content: bytes) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.endless(b"x", 0.05)

    def silent(self, content: bytes) -> None:
        time.sleep(STOP)

    def page(self, content: bytes) -> None:
        self.head(len(content), "text/html; charset=utf-8")
        self.wfile.write(content)

    def packed(self, content: bytes) -> None:
        self.head(len(content), Content_Encoding="gzip")
        self.wfile.write(content)


@contextlib.contextmanager
def serving(files: dict[str, bytes], *, certificate: Path | None = None) -> Iterator[Files]:
    """Serve while the block lasts; with a certificate (PEM with its key): https."""
    shared = Files(dict(files))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"shared": shared}))
    server.daemon_threads, server.block_on_close = True, False
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    shared.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield shared
    finally:
        server.shutdown()
        server.server_close()
