"""A stand-in of the Hugging Face Hub on this machine: serves a folder, and takes commits as huggingface_hub makes them.

Downloads: OWNER/NAME/PATH below a folder. Uploads: create, preupload, LFS batch, commit, over plain HTTP
(HF_HUB_DISABLE_XET=1); what came is kept in memory.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = re.compile(r"\.(safetensors|png|webp|bin)$")


@dataclass
class Hub:
    """What the server has and was told.

    Attributes:
        folder: of the files it serves, or None.
        token: what uploads must show.
        repositories: of "owner/name": whether it is private.
        files: of "owner/name": content by path, after commits.
        objects: large files by hash.
        requests: "METHOD path" of each.
        refuse: status with which creating a repository is refused; 0: it is not.
    """

    folder: Path | None = None
    token: str = "hf_stand_in"
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuse: int = 0
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def tell(self, status: int, answer: Any) -> None:
        self.send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/main)?", self.path.partition("?")[0]):
            if match[1] not in self.hub.repositories:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return
            self.tell(200, {"id": match[1], "private": self.hub.repositories[match[1]], "siblings": [], "tags": []})
            return
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/main/(.+)", self.path.partition("?")[0])
        path = self.hub.folder / match[1] / match[2] if match and self.hub.folder else None
        if path is None or not path.is_file() or ".." in path.parts:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.send(200, content, {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Repo-Commit": "a" * 40})

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != digest:
            self.send(400)
            return
        self.hub.objects[digest] = content
        self.send(200)

    def do_POST(self) -> None:
        hub = self.hub
        hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.tell(401, {"error": "Invalid username or password."})
            return
        if self.path == "/api/validate-yaml":
            wrong = "license: [" in json.loads(body)["content"]
            self.tell(
                400 if wrong else 200, {"errors": [{"message": "unclosed list"}] if wrong else [], "warnings": []}
            )
            return
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
            return
        if match := re.match(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/", self.path):
            if match[1] not in hub.repositories:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return
            if match[2] == "preupload":
                self.preupload(json.loads(body))
            else:
                self.commit(match[1], body)
            return
        if self.path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body))
            return
        self.send(404)

    def create(self, wanted: dict[str, Any]) -> None:
        if self.hub.refuse:
            self.tell(self.hub.refuse, {"error": "You don't have the rights to create a model here"})
            return
        owner = wanted.get("organization") or "me"
        name = f"{owner}/{wanted['name']}"
        if name in self.hub.repositories:
            self.tell(409, {"url": f"{self.hub.endpoint}/{name}"})
            return
        self.hub.repositories[name] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.tell(200, {"url": f"{self.hub.endpoint}/{name}"})

    def preupload(self, wanted: dict[str, Any]) -> None:
        modes = ("lfs" if LARGE.search(file["path"]) else "regular" for file in wanted["files"])
        files = [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
            for file, mode in zip(wanted["files"], modes, strict=True)
        ]
        self.tell(200, {"files": files})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}", "header": {}}}}
            for entry in wanted["objects"]
        ]
        answer = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self.send(200, answer, {"Content-Type": "application/vnd.git-lfs+json"})

    def commit(self, repo: str, body: bytes) -> None:
        files = self.hub.files.setdefault(repo, {})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = "b" * 40
        self.tell(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"})


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer at a free port of this machine while the block lasts; `hub.endpoint` is the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
