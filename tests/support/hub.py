"""A small hub on this machine with faults on demand: listings and redirects on one port, the
bytes on another, as the real one has them."""

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "5" * 40
REPO = "org/model"


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Fault:
    """What goes wrong with the bytes of one file, and how often (-1: always)."""

    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  #: bytes, then the connection is reset
    reset: bool = False  #: at the cut, instead of an orderly end
    corrupt: bool = False
    more: bytes = b""
    ranges: bool = True


@dataclass
class FakeHub:
    files: dict[str, bytes]
    url: str = ""
    far_url: str = ""
    redirect: bool = True
    gated: Any = False
    listing: Any = None  #: instead of the true one
    info_faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    near_faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    far_headers: list[dict[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    slow: float = 0  #: seconds before each 64 KiB

    def siblings(self) -> list[dict[str, Any]]:
        """Weights are in large-file storage, texts are not."""
        listed = []
        for path, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data)}
            entry["blobId"] = git_sha1(data)
            if path.endswith((".safetensors", ".bin", ".gguf")):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            listed.append(entry)
        return listed


class _Near(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def answer(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.hub.requests.append((self.path, self.headers.get("Authorization", "")))
        if self.path.startswith("/api/models/"):
            self.info()
            return
        path = self.path.partition(f"/resolve/{SHA}/")[2]
        fault = _due(self.hub.near_faults.get(path))
        if fault:
            self.answer(fault.status, fault.headers)
        elif self.hub.redirect:
            self.answer(302, {"Location": f"{self.hub.far_url}/{path}"})
        else:
            send(self, path)

    def info(self) -> None:
        repo, _, revision = (
            self.path[len("/api/models/") :].partition("?")[0].partition("/revision/")
        )
        if self.hub.info_faults:
            status, headers = self.hub.info_faults.pop(0)
            self.answer(status, headers)
        elif repo != REPO:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", SHA):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = self.hub.siblings() if self.hub.listing is None else self.hub.listing
            told = {"id": REPO, "modelId": REPO, "sha": SHA, "siblings": siblings}
            body = json.dumps({**told, "gated": self.hub.gated, "private": False}).encode()
            self.answer(200, {"Content-Type": "application/json"}, body)


class _Far(_Near):
    def do_GET(self) -> None:
        self.hub.far_headers.append(dict(self.headers))
        send(self, self.path[1:])


def _due(fault: Fault | None) -> Fault | None:
    if fault is None or fault.times == 0:
        return None
    fault.times -= 1
    return fault


def send(handler: _Near, path: str) -> None:
    """The bytes of a file, as its fault will have it."""
    hub = handler.hub
    fault = _due(hub.faults.get(path)) or Fault()
    if fault.status:
        handler.answer(fault.status, fault.headers)
        return
    data = hub.files[path] + fault.more
    data = bytes(byte ^ 1 for byte in data) if fault.corrupt else data
    wanted = handler.headers.get("Range")
    start = int(wanted[len("bytes=") : -1]) if wanted and fault.ranges else 0
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(data) - start))
    handler.end_headers()
    if fault.reset:
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    _stream(handler, path, data[start:], fault.cut_after)


def _stream(handler: _Near, path: str, data: bytes, cut_after: int | None) -> None:
    hub = handler.hub
    end = len(data) if cut_after is None else cut_after
    for at in range(0, end, 65536):
        if hub.slow:
            threading.Event().wait(hub.slow)
        piece = data[at : min(end, at + 65536)]
        try:
            handler.wfile.write(piece)
        except OSError:
            break
        hub.sent[path] = hub.sent.get(path, 0) + len(piece)
    if cut_after is not None:
        handler.close_connection = True


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """Serves a folder's files as the repository ``REPO``."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    hub = FakeHub(files)
    servers = []
    for handler in (_Near, _Far):
        bound = type(handler.__name__, (handler,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    hub.url, hub.far_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
