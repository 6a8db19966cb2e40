"""A tiny HTTP server that answers as the contract says; the tests choose its behaviour."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bitinglip.home import Home, HomeLock

KEY = "blk_live_test"
TEXT = "/api/v1/inference/text-generation"


def model(name: str, kind: str = "text") -> dict[str, Any]:
    return {
        "model_id": name,
        "name": name,
        "type": kind,
        "description": "[bold]a model[/bold]\x1b[31m",
        "size": "1.2 MB",
        "status": "available",
        "cause": None,
        "capabilities": ["chat"],
        "supported_parameters": {"max_tokens": {}, "seed": {}},
        "engine": "text",
        "architecture": "LlamaForCausalLM",
        "max_context": 2048,
        "dtype": "float32",
        "parameters": 134_515_008,
        "bytes": 1_200_000,
        "source": "demo",
        "revision": None,
    }


WORKER = {
    "id": "demo-text/0",
    "pid": 4242,
    "model": "demo-text",
    "kind": "text",
    "devices": ["cpu"],
    "state": "ready",
    "in_flight": 1,
    "restarts": 2,
    "memory_bytes": 3_000_000_000,
    "started_at": "2026-11-23T09:00:00.000Z",
    "last_heartbeat": None,
    "cause": None,
}
KEY_RECORD = {
    "id": "AbC123",
    "name": "ann",
    "tier": "pro",
    "scopes": ["inference:text"],
    "last_four": "wxyz",
    "created_at": "2026-11-23T09:00:00.000Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
    "models": None,
    "ip_ranges": None,
    "rotated_at": None,
    "grace_until": None,
}


@dataclass
class Stub:
    """Records requests, and holds the responses to them."""

    home: Path
    url: str = ""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    pieces: list[str] = field(default_factory=lambda: ["Hello", ", ", "world"])
    choices: list[dict[str, Any]] = field(default_factory=list)  #: of an answer with several
    pause: float = 0.0  #: seconds before each token
    failure: dict[str, Any] | None = None  #: the stream ends with it
    cuts_off: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def bodies(self, path: str = TEXT) -> list[Any]:
        return [body for _, at, body in self.asked if at == path]


@contextmanager
def stub_api(folder: Path) -> Iterator[Stub]:
    """Serve as the running server of a home: lock, server.json and admin.key are there."""
    home = Home(folder)
    home.create()
    home.admin_key.write_text(KEY + "\n")
    stub = Stub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with HomeLock(home):
            home.write_server_json(stub.url, 1)
            yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    stub: Stub

    def do_GET(self) -> None:
        self._handle(None)

    def do_DELETE(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._handle(json.loads(raw) if raw else None)

    def _handle(self, body: Any) -> None:
        path = self.path.partition("?")[0]
        self.stub.asked.append((self.command, path, body))
        if self.headers.get("Authorization") != f"Bearer {KEY}" and path != "/health":
            self._error(401, "INVALID_API_KEY", "The API key is missing or not valid.")
        elif path == TEXT:
            self._stream(body)
        else:
            status, answer = answer_to(self.command, path, body)
            self._json(status, answer)

    def _json(self, status: int, answer: Any) -> None:
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str, message: str, **details: Any) -> None:
        self._json(status, {"error": {"code": code, "message": message, "details": details}})

    def _stream(self, body: Any) -> None:
        if body["model"] != "demo-text":
            names = ["demo-echo", "demo-text"]
            self._error(404, "INVALID_MODEL", "No such model.", available_models=names)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._events()
        except OSError:
            self.stub.cancelled.set()

    def _events(self) -> None:
        self._event("queued", {"position": 1, "eta": None})
        self._event("loading", {"progress": 0.5})
        time.sleep(self.stub.pause * 20)
        self._event("started", {"task_id": "t"})
        for index, piece in enumerate(self.stub.pieces):
            time.sleep(self.stub.pause)
            self._event("token", {"text": piece, "index": index})
        if self.stub.cuts_off:
            return
        if self.stub.failure:
            self._event("failed", {"error": self.stub.failure})
        else:
            whole = completed("".join(self.stub.pieces), len(self.stub.pieces))
            if self.stub.choices:
                whole["result"]["choices"] = self.stub.choices
            self._event("completed", whole)

    def _event(self, name: str, data: Any) -> None:
        text = json.dumps(data, ensure_ascii=False)
        self.wfile.write(f"event: {name}\ndata: {text}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        pass


def completed(text: str, tokens: int) -> dict[str, Any]:
    return {
        "task_id": "t",
        "status": "completed",
        "result": {"text": text, "finish_reason": "stop"},
        "processing_time": 0.5,
        "worker_id": "demo-text/0",
        "created_at": "2026-11-23T09:00:00.000Z",
        "completed_at": "2026-11-23T09:00:01.000Z",
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
        "model": "demo-text",
        "queue_time": 0.0,
    }


def listed(rows: list[Any]) -> dict[str, Any]:
    return {"data": rows, "total": len(rows), "limit": 1000, "offset": 0}


def answer_to(method: str, path: str, body: Any) -> tuple[int, Any]:
    models = [
        model("demo-text"),
        {**model("org/painter", "image"), "capabilities": ["text-to-image"]},
    ]
    base = {**model("org/base"), "capabilities": ["completion"]}
    status = {
        "status": "running",
        "in_flight": 1,
        "queued": 3,
        "models": [{"model_id": "demo-text", "status": "ready", "cause": None, "queued": 3}],
        "workers": [WORKER],
    }
    checks = {"database": {"ok": False, "detail": "does not answer", "latency_ms": 1}}
    answers: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", "/health"): (503, {"status": "degraded", "version": "9.9", "checks": checks}),
        ("GET", "/api/v1/models"): (200, listed(models)),
        ("GET", "/api/v1/models/demo-text"): (200, models[0]),
        ("GET", "/api/v1/models/org/painter"): (200, models[1]),
        ("GET", "/api/v1/models/org/base"): (200, base),
        ("POST", "/api/v1/models/import"): (201, model((body or {}).get("name", ""))),
        ("POST", "/api/v1/models/demo-text/load"): (200, {**models[0], "status": "ready"}),
        ("POST", "/api/v1/models/demo-text/unload"): (200, models[0]),
        ("DELETE", "/api/v1/models/demo-text"): (204, None),
        ("GET", "/api/v1/cluster/status"): (200, status),
        ("GET", "/api/v1/workers"): (200, listed([WORKER])),
        ("POST", "/api/v1/workers/demo-text/0/restart"): (202, {"id": "demo-text/0"}),
        ("DELETE", "/api/v1/workers/demo-text/0"): (204, None),
        ("GET", "/api/v1/keys"): (200, listed([KEY_RECORD])),
        ("GET", "/api/v1/keys/AbC123"): (200, KEY_RECORD),
        ("POST", "/api/v1/keys"): (201, {**KEY_RECORD, "key": "blk_live_secret"}),
        ("DELETE", "/api/v1/keys/AbC123"): (204, None),
    }
    error = {"error": {"code": "NOT_FOUND", "message": "There is nothing at this address."}}
    return answers.get((method, path), (404, error))
