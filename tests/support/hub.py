"""A small hub on this machine with faults on demand: listings and redirects on one port, the
bytes on another, as the real one has them."""

import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "5" * 40
REPO = "org/model"
_BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
_PIECE = 1 << 16


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Fault:
    """Describes a fault in the bytes of one file, and how often it occurs (-1: always)."""

    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  #: bytes, then the connection ends
    reset: bool = False  #: at the cut, instead of an orderly end
    stall_after: int | None = None  #: bytes, then silence
    corrupt: bool = False
    more: bytes = b""
    ranges: bool = True
    to: str = ""  #: the host that it redirects to, instead of the usual one


@dataclass
class FakeHub:
    files: dict[str, bytes]
    repo: str = REPO
    url: str = ""
    far_url: str = ""
    sha: str = SHA  #: of main
    old: dict[str, dict[str, bytes]] = field(default_factory=dict)  #: other commits
    refs: dict[str, str] = field(default_factory=dict)  #: branches and tags beside main
    renamed: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)  #: names of datasets and spaces
    redirect: bool = True
    gated: Any = False
    private: bool = False
    token: str | None = None  #: the one that is valid; None: every one is
    listing: Any = None  #: instead of the true one
    info_faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)  #: bytes of each next body
    ranges: list[tuple[str, int]] = field(default_factory=list)  #: where each body began
    near_faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    far_headers: list[dict[str, str]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)  #: files whose first bytes were asked for
    sent: dict[str, int] = field(default_factory=dict)
    info_stalls: bool = False
    down: bool = False  #: nothing is answered
    found: Any = ()  #: repositories that its search finds
    told_name: str = REPO  #: of the repository, in its listing
    beside: dict[str, "FakeHub"] = field(default_factory=dict)  #: other repositories, by name
    endless: str = ""  #: the beginning of the paths that are answered without an end
    at_once: int = 0  #: bodies that are being sent
    slow: float = 0  #: seconds before each 64 KiB
    released: threading.Event = field(default_factory=threading.Event)  #: ends what stalls

    def commit(self, sha: str, files: dict[str, bytes]) -> None:
        """Move main to another commit; the one before stays."""
        self.old[self.sha] = self.files
        self.sha, self.files = sha, files

    def at(self, sha: str) -> dict[str, bytes] | None:
        return self.files if sha == self.sha else self.old.get(sha)

    def having(self, path: str) -> "FakeHub":
        """Return what answers for a path: another repository, or this one."""
        found = [each for name, each in self.beside.items() if name in path or each.sha in path]
        return found[0] if found else self

    def siblings(self, sha: str = "") -> list[dict[str, Any]]:
        """List a repository's files: weights are in large-file storage, texts are not."""
        listed = []
        for path, data in (self.at(sha or self.sha) or {}).items():
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
        self.hub = hub = type(self).hub.having(self.path)
        token = self.headers.get("Authorization", "")
        if hub.down:
            self.close_connection = True
            return
        if self.path.startswith("http://"):  # it is asked as a proxy
            self.path = "/" + self.path.split("/", 3)[3]
        hub.requests.append((self.path, token))
        if hub.token and token not in ("", f"Bearer {hub.token}"):
            self.answer(401, _BAD_TOKEN)
        elif hub.endless and self.path.startswith(hub.endless):
            self.never_end()
        elif self.path.startswith("/api/"):
            self.info(token)
        else:
            self.file()

    def never_end(self) -> None:
        """Listings begin and go on; files are elsewhere, and the answer that says so goes on."""
        listing = self.path.startswith("/api/")
        self.send_response(200 if listing else 302)
        if not listing:
            self.send_header("Location", self.hub.far_url + self.path.partition("/resolve")[2])
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        self.close_connection = True
        piece = b" " * (4 << 20)
        with suppress(OSError):
            while True:
                self.wfile.write(piece)

    def file(self) -> None:
        repo, _, rest = self.path[1:].partition("/resolve/")
        sha, _, path = rest.partition("/")
        fault = _due(self.hub.near_faults.get(path))
        if fault and fault.status:
            self.answer(fault.status, fault.headers)
        elif repo in self.hub.renamed:
            self.moved(repo)
        elif (self.hub.at(sha) or {}).get(path) is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
        elif self.hub.redirect:
            far = (fault and fault.to) or self.hub.far_url
            self.answer(302, {"Location": f"{far}/{sha}/{path}"})
        else:
            send(self, sha, path)

    def moved(self, repo: str) -> None:
        self.answer(307, {"Location": self.path.replace(repo, self.hub.renamed[repo], 1)})

    def info(self, token: str) -> None:
        hub = self.hub
        if self.path.startswith("/api/models?"):
            self.json([{"id": name} for name in hub.found])
            return
        kind, _, asked = self.path[len("/api/") :].partition("?")[0].partition("/")
        repo, _, revision = asked.partition("/revision/")
        sha = {"": hub.sha, "main": hub.sha, **hub.refs}.get(revision, revision)
        if hub.info_stalls:
            hub.released.wait()
        if kind != "models" and hub.others.get(repo) == kind:
            self.json({"id": repo, "sha": SHA, "siblings": []})
        elif kind == "models" and hub.info_faults:
            status, headers = hub.info_faults.pop(0)
            self.answer(status, headers)
        elif kind == "models" and repo in hub.renamed:
            self.moved(repo)
        elif kind != "models" or repo != hub.repo or (hub.private and not token):
            self.answer(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        elif hub.at(sha) is None:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = hub.siblings(sha) if hub.listing is None else hub.listing
            told = {"id": hub.told_name, "modelId": hub.told_name, "sha": sha, "siblings": siblings}
            self.json({**told, "gated": hub.gated, "private": hub.private})

    def json(self, value: Any) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


class _Far(_Near):
    def do_GET(self) -> None:
        self.hub = type(self).hub.having(self.path)
        sha, _, path = self.path[1:].partition("/")
        if not _is_head(self):
            self.hub.far_headers.append(dict(self.headers))
        if path in (self.hub.at(sha) or {}):
            send(self, sha, path)
        else:
            self.answer(404)


def _due(fault: Fault | None) -> Fault | None:
    if fault is None or fault.times == 0:
        return None
    fault.times -= 1
    return fault


def send(handler: _Near, sha: str, path: str) -> None:
    """Return the bytes of a file, as its fault will have it."""
    hub = handler.hub
    if _is_head(handler):
        send_head(handler, sha, path)
        return
    fault = _due(hub.faults.get(path)) or Fault()
    if cuts := hub.cuts.get(path):
        fault.cut_after = cuts.pop()
    if fault.status:
        handler.answer(fault.status, fault.headers)
        return
    data = (hub.at(sha) or {})[path] + fault.more
    data = bytes(byte ^ 1 for byte in data) if fault.corrupt else data
    wanted = handler.headers.get("Range") if fault.ranges else None
    start, end = 0, len(data)
    if wanted:
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(end, int(last) + 1) if last else end
        if start >= end:
            handler.answer(416, {"Content-Range": f"bytes */{len(data)}"})
            return
    hub.ranges.append((path, start))
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    if fault.reset:
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    hub.at_once += 1
    _stream(handler, path, memoryview(data)[start:end], fault)
    hub.at_once -= 1


def _is_head(handler: _Near) -> bool:
    """Tell a look at a file's first bytes, which no fault meets, from a download, whose range has
    no end."""
    first, _, last = handler.headers.get("Range", "").partition("-")
    return first == "bytes=0" and last != ""


def send_head(handler: _Near, sha: str, path: str) -> None:
    data = (handler.hub.at(sha) or {})[path]
    end = int(handler.headers["Range"].partition("-")[2]) + 1
    handler.hub.heads.append(path)
    told = {"Content-Range": f"bytes 0-{min(end, len(data)) - 1}/{len(data)}"}
    handler.answer(206, told, data[:end])


def _stream(handler: _Near, path: str, data: memoryview, fault: Fault) -> None:
    hub = handler.hub
    stop = fault.stall_after if fault.cut_after is None else fault.cut_after
    end = len(data) if stop is None else min(stop, len(data))
    for at in range(0, end, _PIECE):
        if hub.slow:
            threading.Event().wait(hub.slow)
        piece = data[at : min(end, at + _PIECE)]
        try:
            handler.wfile.write(piece)
        except OSError:
            break
        hub.sent[path] = hub.sent.get(path, 0) + len(piece)
    if fault.stall_after is not None:
        hub.released.wait()
    if end < len(data):
        handler.close_connection = True


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """Serves a folder's files as the repository ``REPO``."""
    with serve(FakeHub(files_of(folder))) as hub:
        yield hub


@contextmanager
def hub_of(folders: Mapping[str, Path]) -> Iterator[FakeHub]:
    """Serves folders as repositories of these names, at their first and only commit."""
    hub = FakeHub({})
    for number, (name, folder) in enumerate(folders.items()):
        sha = f"{number:040x}"
        hub.beside[name] = FakeHub(files_of(folder), name, told_name=name, sha=sha)
    with serve(hub):
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, by their paths in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@contextmanager
def serve(hub: FakeHub, tls: tuple[Path, Path] | None = None) -> Iterator[FakeHub]:
    """Serves a hub; ``tls`` are a certificate and its key, for HTTPS."""
    servers = []
    for handler in (_Near, _Far):
        bound = type(handler.__name__, (handler,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    scheme = "https" if tls else "http"
    for each in (hub, *hub.beside.values()):
        each.url, each.far_url = (f"{scheme}://127.0.0.1:{one.server_port}" for one in servers)
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()
