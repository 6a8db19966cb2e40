"""Serves the whole application in a thread of the test; only the workers follow a script."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from bitinglip.access.keys import PEPPER, KeyRing
from bitinglip.access.scopes import Scope
from bitinglip.api.services import Services
from bitinglip.app import build
from bitinglip.audit.chain import SEALING
from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.db.tables import ApiKey
from bitinglip.home import Home
from bitinglip.http import websocket
from bitinglip.http.capacity import capacity
from bitinglip.http.connections import Connections, Times
from bitinglip.http.server import HttpServer
from bitinglip.settings import Settings
from bitinglip.tls import Certificate
from model_store.store import ModelStore
from tests.support.model_folders import llama, pipeline
from tests.support.scripted_worker import Script, ScriptedLauncher
from tests.support.wait import eventually
from workers import protocol
from workers.devices import Devices
from workers.nodes.cluster import Agents

ADMIN = "admin"
EXPIRED = "expired"
#: what the keys of tests, of tier free, have of the tier's limits
UNLIMITED = {
    "requests_per_minute": None,
    "requests_per_hour": None,
    "concurrent_requests": None,
}
#: more than one scope in one key, as tests name them
_PAIRS = ("cluster:write,cluster:read",)
_QUIET = {
    "demo": "never",
    "workers": {"spare": False},
    "devices": {"page_cache_bytes": 0},
    "limits": {"tiers": {"free": UNLIMITED}, "failed_logins_per_minute": None},
}


async def echo(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Answer as a healthy engine does; a prompt that begins with ``!`` asks for a fault."""
    assert isinstance(job, protocol.TextJob)
    prompt = job.prompt if job.prompt is not None else (job.messages or ())[-1].content
    if prompt == "!refuse":
        yield protocol.Failed(id=job.id, code="CONTEXT_LENGTH_EXCEEDED", message="too long")
        return
    if prompt.startswith("!wait"):
        await asyncio.sleep(60)
    yield protocol.Started(id=job.id, prompt_tokens=1)
    for index, text in enumerate(["one", " two"]):
        if job.stream:
            yield protocol.TextDelta(id=job.id, text=text, index=index)
        await asyncio.sleep(0.01)
    while prompt == "!flood":
        yield protocol.TextDelta(id=job.id, text="x" * 100_000, index=2)
        await asyncio.sleep(0.001)
    if prompt == "!stall":
        await asyncio.sleep(60)
    if prompt == "!crash":
        yield protocol.Failed(id=job.id, code="WORKER_CRASHED", message="it died")
    elif prompt == "!cancel":
        yield protocol.Cancelled(id=job.id)
    else:
        yield protocol.TextDone(
            id=job.id,
            choices=(protocol.TextChoice(text="one two", finish_reason="length"),),
            prompt_tokens=1,
            completion_tokens=2,
        )


@dataclass
class Served:
    """Holds a running server, and what a test needs to use and to watch it."""

    url: str
    port: int
    home: Home
    app: FastAPI
    services: Services
    workers: ScriptedLauncher
    server: uvicorn.Server
    connections: Connections
    loop: asyncio.AbstractEventLoop
    keys: dict[str, str] = field(default_factory=dict)  #: by scope, or by ``scope,scope``

    def headers(self, scope: str) -> dict[str, str]:
        """Return the header with a key of this scope."""
        return {"authorization": f"Bearer {self.keys[scope]}"}

    @property
    def in_flight(self) -> int:
        return self.services.dispatcher.in_flight

    def websockets(self) -> list[websocket.WebSocketProtocol]:
        """Return the connected WebSockets."""
        connections = list(self.server.server_state.connections)
        return [each for each in connections if isinstance(each, websocket.WebSocketProtocol)]

    def wait_sampled(self) -> None:
        """Wait until the server has looked at its devices once."""
        devices = self.services.operations.devices
        eventually(lambda: any(each.used_bytes for each in devices() if each.kind == "cpu"))

    def wait_idle(self) -> None:
        """Check that no job outlives its request."""
        eventually(lambda: self.in_flight == 0)


@contextmanager
def serve(
    root: Path,
    script: Script = echo,
    *,
    slots: int = 64,
    times: Times | None = None,
    machine: Devices | None = None,
    certificate: Certificate | None = None,
    agents: Agents | None = None,
    real: bool = False,
    **values: Any,
) -> Iterator[Served]:
    """Serve a home under ``root`` with three models: demo and org/deep (text), painter (image).

    ``times`` are what its clients are given; ``machine`` has the devices in place of this one's.
    ``certificate`` is for HTTPS; ``agents`` start real workers as on other machines; ``real``: the
    settings say what does. ``values`` are settings; sections are merged with those that keep a
    test quiet.
    """
    home = Home(root / "home")
    home.create()
    _make_models(home, root)
    keys = asyncio.run(_make_keys(home))
    merged = {name: {**_section(_QUIET, name), **value} for name, value in values.items()}
    if free := values.get("limits", {}).get("tiers", {}).get("free"):
        merged["limits"]["tiers"]["free"] = {**UNLIMITED, **free}
    settings = Settings.model_validate({**_QUIET, **merged})
    workers = ScriptedLauncher(script, slots=slots)
    opened = threading.Event()
    found: list[tuple[Services, asyncio.AbstractEventLoop]] = []

    def on_open(services: Services, _key: str | None) -> None:
        found.append((services, asyncio.get_running_loop()))
        opened.set()

    connections = Connections(capacity(settings.server, 1024), times)
    app = build(
        settings,
        home,
        launcher=None if real or agents is not None else workers,
        agents=agents,
        on_open=on_open,
        connections=connections,
        devices=machine,
        certificate=certificate,
    )
    tls = certificate.context if certificate else None
    server = HttpServer(app, connections, tls=tls, timeout_graceful_shutdown=1)
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        while not (opened.wait(0.01) and server.started):
            assert thread.is_alive(), "the server did not start"
        port = int(sock.getsockname()[1])
        services, loop = found[0]
        url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        yield Served(url, port, home, app, services, workers, server, connections, loop, keys)
    finally:
        server.should_exit = True
        thread.join()


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name, {})
    assert isinstance(found, dict)
    return found


def _make_models(home: Home, root: Path) -> None:
    store = ModelStore(home.models)
    if store.names():  # it has been served before
        return
    for name in ("demo", "org/deep"):
        store.import_folder(llama(root / "llama" / name), name)
    store.import_folder(pipeline(root / "pipeline"), "painter")


async def _make_keys(home: Home) -> dict[str, str]:
    """Make a key for each scope, before the server starts; the expired one ends at once."""
    db = await Database.open(home.database)
    ring = await KeyRing.open(db, home.secret(PEPPER), AuditLog(db, home.secret(SEALING)))
    await ring.ensure_admin_key(home)
    keys = {ADMIN: home.admin_key.read_text().strip()}
    for scopes in [*(str(scope) for scope in Scope if scope is not Scope.ADMIN), *_PAIRS]:
        _, keys[scopes] = await ring.create(name=scopes, scopes=scopes.split(","))
    now = datetime.now(UTC)
    record, keys[EXPIRED] = await ring.create(name=EXPIRED, expires_at=now + timedelta(hours=1))
    async with db.write() as session:  # none can be made that has expired already
        key = await session.get_one(ApiKey, record.id)
        key.expires_at = now - timedelta(seconds=1)
    await db.close()
    return keys
