"""Serves the real HTTP API over a dispatcher that plays scripts in place of workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from bitinglip import api, errors
from bitinglip.access.keys import Caller, KeyRecord
from bitinglip.access.scopes import Scope
from bitinglip.access.tickets import Tickets
from bitinglip.api import websocket
from bitinglip.api.services import Services
from bitinglip.results.files import Files
from bitinglip.scheduling.event_log import EventLog, Loading, Queued
from bitinglip.scheduling.job import Job, TextJob
from bitinglip.scheduling.models.operations import WorkerView
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.scheduling.queue.overload import OverloadController
from bitinglip.settings import Settings
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.metrics import Metrics
from bitinglip.wire.response import inference_response
from model_store.errors import NameTaken, UnknownModel
from model_store.manifest import Manifest
from workers import protocol

NOW = datetime(2026, 11, 23, tzinfo=UTC)
Script = Callable[[EventLog], Any]  #: a coroutine function that puts events


async def echo(event_log: EventLog) -> None:
    """What a healthy worker does; ``!`` in the prompt asks for trouble."""
    job = event_log.job
    assert isinstance(job, TextJob)
    prompt = job.prompt if job.prompt is not None else (job.messages or ())[-1].content
    event_log.put(Queued(1))
    event_log.put(Loading(0.5))
    if prompt == "!refuse":
        event_log.put(
            protocol.Failed(id=job.id, code="CONTEXT_LENGTH_EXCEEDED", message="too long")
        )
        return
    if prompt == "!wait":
        await asyncio.sleep(60)
    event_log.put(protocol.Started(id=job.id, prompt_tokens=1))
    for index, text in enumerate(["one", " two"]):
        if job.stream:
            event_log.put(protocol.TextDelta(id=job.id, text=text, index=index))
        await asyncio.sleep(0.01)
    while prompt == "!flood":
        event_log.put(protocol.TextDelta(id=job.id, text="x" * 100_000, index=2))
        await asyncio.sleep(0.001)
    if prompt == "!stall":
        await asyncio.sleep(60)
    if prompt == "!crash":
        event_log.put(protocol.Failed(id=job.id, code="WORKER_CRASHED", message="it died"))
    if prompt == "!cancel":
        event_log.put(protocol.Cancelled(id=job.id))
    event_log.put(
        protocol.TextDone(
            id=job.id, text="one two", finish_reason="length", prompt_tokens=1, completion_tokens=2
        )
    )


@dataclass
class ScriptedDispatcher:
    """Runs ``script`` for each job; counts what is open, like the real one's books."""

    script: Script
    refuse: errors.BitingLipError | None = None
    draining: bool = False
    overload: OverloadController = field(default_factory=OverloadController)
    in_flight: int = 0
    queued: int = 0
    left_early: int = 0
    jobs: list[Job] = field(default_factory=list)
    opened: dict[str, EventLog] = field(default_factory=dict)

    @contextmanager
    def open(self, job: Job) -> Iterator[EventLog]:
        if self.refuse:
            raise self.refuse
        self.jobs.append(job)
        self.in_flight += 1
        event_log = self.opened[job.id] = EventLog(job)
        event_log.dispatch(f"{job.model}/0")
        play = asyncio.get_running_loop().create_task(self.script(event_log))
        try:
            yield event_log
        finally:
            play.cancel()
            self.in_flight -= 1
            self.left_early += event_log.final is None

    def find(self, job_id: str) -> EventLog | None:
        return self.opened.get(job_id)

    def depth(self, _model: str) -> int:
        return self.queued

    def running(self, _model: str) -> int:
        return 0

    def oldest_wait(self, _model: str) -> None:
        return None

    def eta(self, _model: str) -> None:
        return None


class FakeStore:
    def __init__(self) -> None:
        self.manifests = {
            name: _manifest(name, kind)
            for name, kind in [("demo", "text"), ("org/deep", "text"), ("painter", "image")]
        }

    def names(self) -> list[str]:
        return list(self.manifests)

    def list(self) -> list[Manifest]:
        return [*self.manifests.values()]

    def get(self, name: str) -> Manifest:
        if name not in self.manifests:
            raise UnknownModel("There is no such model.")
        return self.manifests[name]

    def import_folder(self, _path: Path, name: str, **_options: bool) -> None:
        if name in self.manifests:
            raise NameTaken("There is a model of this name.")
        self.manifests[name] = _manifest(name, "text")

    def remove(self, name: str) -> None:
        del self.manifests[name]


def _manifest(name: str, kind: str) -> Manifest:
    return Manifest(
        name=name,
        kind=kind,
        engine=kind,
        architecture="X",
        max_context=2048,
        dtype="float32",
        parameters=1000,
        weight_bytes=4000,
        total_bytes=1_234_567,
        has_chat_template=True,
        capabilities=("chat",),
        description="a model",
        source="test",
        revision=None,
        created_at=NOW,
    )


@dataclass
class FakeCluster:
    bootstrapped = True
    states: dict[str, str] = field(default_factory=dict)
    busy: bool = False
    done: list[tuple[str, str]] = field(default_factory=list)

    def status(self, name: str) -> str:
        return self.states.get(name, "available")

    def cause(self, name: str) -> str | None:
        return "it broke" if self.status(name) == "error" else None

    def ready(self, _name: str) -> None:
        return None

    def progress(self, _name: str) -> None:
        return None

    def in_use(self, _name: str) -> bool:
        return False

    def idle_seconds(self, _name: str) -> None:
        return None

    def replicas(self, _name: str) -> list[Any]:
        return []

    def devices(self) -> list[dict[str, Any]]:
        return []

    def reservations(self) -> list[dict[str, Any]]:
        return []

    def drain_worker(self, worker_id: str) -> None:
        self._note("drain", worker_id)

    async def load(self, name: str) -> None:
        self.states[name] = "ready"

    async def unload(self, name: str) -> None:
        if self.busy:
            raise errors.ModelInUse(param="model")
        self.states.pop(name, None)

    def workers(self) -> list[WorkerView]:
        return [
            WorkerView(
                id="org/deep/0",
                pid=1,
                model="org/deep",
                kind="text",
                devices=["cpu"],
                state="ready",
                in_flight=0,
                restarts=0,
                memory_bytes=5,
                started_at=NOW,
                last_heartbeat=None,
                cause=None,
            )
        ]

    async def restart_worker(self, worker_id: str) -> None:
        self._note("restart", worker_id)

    async def stop_worker(self, worker_id: str) -> None:
        self._note("stop", worker_id)

    def _note(self, what: str, worker_id: str) -> None:
        if worker_id != "org/deep/0":
            raise errors.WorkerNotFound()
        self.done.append((what, worker_id))


class FakeKeys:
    """Keys are their own names: ``k-<scope>[,<scope>]``."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}

    def authenticate(self, credential: str) -> Caller:
        if credential == "k-expired":
            raise errors.ExpiredApiKey()
        try:
            scopes = frozenset(Scope(name) for name in credential.removeprefix("k-").split(","))
        except ValueError:
            raise errors.InvalidApiKey() from None
        return Caller(credential, credential, "free", scopes)

    async def create(self, **values: Any) -> tuple[KeyRecord, str]:
        record = KeyRecord(
            id=f"id{len(self.records)}",
            name=values["name"],
            tier=values["tier"],
            scopes=tuple(Scope(name) for name in values["scopes"] or ["models:read"]),
            last_four="abcd",
            created_at=NOW,
            expires_at=values["expires_at"],
            revoked_at=None,
            last_used_at=None,
        )
        self.records[record.id] = record
        return record, "blk_secret"

    def list(self) -> list[KeyRecord]:
        return list(self.records.values())

    def get(self, key_id: str) -> KeyRecord:
        if key_id not in self.records:
            raise errors.KeyNotFound()
        return self.records[key_id]

    async def revoke(self, key_id: str) -> KeyRecord:
        return self.records.pop(self.get(key_id).id)


class FakeDatabase:
    broken = False

    async def check(self) -> None:
        if self.broken:
            raise OSError("no disk")


@dataclass
class Served:
    """A running server, and the parts that a test may turn."""

    url: str
    port: int
    app: FastAPI
    dispatcher: ScriptedDispatcher
    operations: FakeCluster
    store: FakeStore
    database: FakeDatabase
    server: uvicorn.Server

    def websockets(self) -> list[websocket.WebSocketProtocol]:
        """Those that are connected."""
        connections = list(self.server.server_state.connections)
        return [each for each in connections if isinstance(each, websocket.WebSocketProtocol)]


@contextmanager
def serve(settings: Settings, script: Script, folder: Path = Path("nowhere")) -> Iterator[Served]:
    """The real routes and middleware on a free port, over scripted parts."""
    dispatcher, operations, store = ScriptedDispatcher(script), FakeCluster(), FakeStore()
    database, metrics = FakeDatabase(), Metrics()
    files = Files(cast("Any", database), folder, retention=60, max_bytes=2**30)
    metrics.watch(lambda: dispatcher.in_flight, dict, dict)
    app = FastAPI(title="x", version="0", redoc_url=None, swagger_ui_oauth2_redirect_url=None)
    api.mount(app, settings)
    app.state.services = Services(
        settings=settings,
        home=cast("Any", None),
        store=cast("Any", store),
        keys=cast("Any", FakeKeys()),
        dispatcher=cast("Any", dispatcher),
        operations=cast("Any", operations),
        footprints=Footprints(),
        metrics=metrics,
        db=cast("Any", database),
        tasks=Tasks(
            cast("Any", database),
            cast("Any", dispatcher),
            inference_response,
            files.register,
            retention=60,
        ),
        tickets=Tickets(),
        files=files,
    )
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        **websocket.OPTIONS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        port = _port(server, thread)
        yield Served(
            f"http://127.0.0.1:{port}",
            port,
            app,
            dispatcher,
            operations,
            store,
            database,
            server,
        )
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def _port(server: uvicorn.Server, thread: threading.Thread) -> int:
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.01)
    return int(server.servers[0].sockets[0].getsockname()[1])
