"""Serves a folder as a repository of a hub, as fast as the kernel sends files.

    python -m benchmarks.hub_server FOLDER

Prints its address, and serves until its input ends.
"""

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPO = "bench/model"
SHA = "b" * 40


def listing(folder: Path) -> dict[str, Any]:
    siblings = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        lfs = {"sha256": sha256, "size": size, "pointerSize": 130}
        siblings.append({"rfilename": path.name, "size": size, "blobId": "0" * 40, "lfs": lfs})
    return {"id": REPO, "modelId": REPO, "sha": SHA, "siblings": siblings, "gated": False}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    listed: bytes

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self._begin(200, len(self.listed))
            self.wfile.write(self.listed)
            return
        with (self.folder / self.path.rpartition("/")[2]).open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            first, _, last = self.headers.get("Range", "bytes=0-")[len("bytes=") :].partition("-")
            begin, end = int(first), min(end, int(last) + 1) if last else end
            self._begin(206 if "Range" in self.headers else 200, end - begin)
            self.wfile.flush()
            while begin < end:
                begin += os.sendfile(self.connection.fileno(), file.fileno(), begin, end - begin)

    def _begin(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def main(folder: Path) -> None:
    known = {"folder": folder, "listed": json.dumps(listing(folder)).encode()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfFolder", (Handler,), known))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
