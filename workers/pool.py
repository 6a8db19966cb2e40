"""The pool owns worker processes, on the gateway's event loop. Only it writes a Worker or ends one.

A start ends in Ready or in :class:`StartFailed`, never in waiting. Death is seen through the
sentinel and the pipe's end, silence through heartbeats; both end in one call of ``lost``.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, assert_never

from workers.codes import DRIVER_STARTED, LoadCode
from workers.engines.registry import ENGINES, engine_info
from workers.framing import BadFrame, FrameReader, encode_commands
from workers.launcher import Handle, Launcher
from workers.output import Output
from workers.protocol import (
    Command,
    Event,
    Heartbeat,
    Imported,
    JobEvent,
    Load,
    LoadFailed,
    LoadProgress,
    Ready,
    Stop,
    WorkerEvent,
)

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_MOST_ENDED = 64  #: workers that ended badly and are still shown
_SERVING = ("ready", "draining")  #: states in which a worker runs jobs
_ENDING_SECONDS = 5.0  #: between asking a worker to stop and killing it

#: The spare imports what most workers need; other engines' libraries are imported on top of it.
SPARE_IMPORTS = ENGINES["text"].preimport


class StartFailed(Exception):
    """A worker did not become ready."""

    def __init__(self, code: LoadCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Listener(Protocol):
    """Receives the events of workers; called on the event loop, so it must not block."""

    def on_events(self, worker: "Worker", events: list[JobEvent]) -> None: ...
    def on_progress(self, worker: "Worker", fraction: float) -> None: ...
    def on_lost(self, worker: "Worker", cause: str) -> None:
        """A ready worker has ended, whatever ended it; it is told once."""
        ...


@dataclass(eq=False)
class Worker:
    """One incarnation of a worker process."""

    handle: Handle
    state: str = "starting"  #: starting, warm, loading, ready, draining, stopped, failed
    id: str = "spare"
    spec: Load | None = None
    ready: Ready | None = None
    heartbeat: Heartbeat | None = None
    cause: str | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_seen: float = field(default_factory=time.monotonic)
    last_heartbeat: datetime | None = None
    reader: FrameReader = field(default_factory=FrameReader)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    load_failure: LoadFailed | None = None
    output: Output = field(init=False)

    def __post_init__(self) -> None:
        self.output = Output(lambda line: log.warning("%s: %s", self.id, line))

    outbox: list[Command] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.handle.pid

    @property
    def folder(self) -> Path | None:
        """The folder that it writes to; None if it has none of its own."""
        return self.handle.folder

    def send(self, command: Command) -> None:
        """Put a command on the worker's queue; nothing happens if it has ended.

        What is sent in one turn of the event loop goes as one message: each costs a wake-up of
        the queue's thread, and of the worker.
        """
        if not self.outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self.outbox.append(command)

    def _flush(self) -> None:
        if not self.ended.is_set():
            self.handle.send(encode_commands(self.outbox))
        self.outbox.clear()


class WorkerPool:
    def __init__(
        self,
        launcher: Launcher,
        listener: Listener,
        *,
        heartbeat_timeout: float,
        load_timeout: float,
        spare: bool,
    ) -> None:
        self._launcher = launcher
        self._listener = listener
        self._heartbeat_timeout = heartbeat_timeout
        self._load_timeout = load_timeout
        self._keep_spare = spare
        self._spare: Worker | None = None
        self._workers: set[Worker] = set()
        self._ended: OrderedDict[str, Worker] = OrderedDict()

    @property
    def ended(self) -> list[Worker]:
        """The last incarnation of each worker that ended badly and was not replaced."""
        return list(self._ended.values())

    @property
    def workers(self) -> list[Worker]:
        return sorted(self._workers, key=lambda worker: worker.id)

    async def start(self, worker_id: str, spec: Load) -> Worker:
        """Start a worker that serves the model of ``spec``. Raises :class:`StartFailed`."""
        spare = self._take_spare(spec.engine)
        if spare is not None:
            try:
                return await self._load(spare, worker_id, spec)
            except StartFailed as failure:
                if failure.code != DRIVER_STARTED:
                    raise
                log.warning("%s: %s Another process is started.", worker_id, failure.message)
        imports = engine_info(spec.engine).preimport
        worker = self._launch(worker_id, imports, spec.visible_devices)
        return await self._load(worker, worker_id, spec)

    async def _load(self, worker: Worker, worker_id: str, spec: Load) -> Worker:
        """Have a process become the worker of ``spec``. Raises :class:`StartFailed`."""
        worker.id, worker.spec = worker_id, spec
        try:
            async with asyncio.timeout(self._load_timeout):
                await self._until(worker, {"warm"})
                worker.state = "loading"
                worker.send(spec)
                await self._until(worker, {"ready"})
        except TimeoutError:
            await self._end(worker, f"did not load within {self._load_timeout:g} s")
            raise StartFailed("MODEL_LOAD_FAILED", f"The model {worker.cause}.") from None
        except asyncio.CancelledError:
            await self._end(worker, "the load was given up", state="stopped")
            raise
        return worker

    async def stop(self, worker: Worker, cause: str = "stopped") -> None:
        """Ask a worker to leave, then make it; returns when it is gone. Not reported as lost."""
        if worker.state in ("stopped", "failed"):
            await worker.ended.wait()
            return
        listening = worker.state in _SERVING
        worker.state, worker.cause = "stopped", cause
        if listening:
            worker.send(Stop())
        else:
            worker.handle.kill()
        try:
            async with asyncio.timeout(_ENDING_SECONDS):
                await worker.ended.wait()
        except TimeoutError:
            worker.handle.kill()
            await worker.ended.wait()

    def drain(self, worker: Worker) -> None:
        """Mark a worker that gets nothing new; it is stopped when it has finished."""
        if worker.state == "ready":
            worker.state = "draining"

    async def kill(self, worker: Worker, cause: str) -> None:
        """End a worker at once; returns when it is gone, and reports it as lost."""
        worker.cause = cause
        worker.handle.kill()
        await worker.ended.wait()

    async def close(self) -> None:
        """Stop all workers, the spare too."""
        self._keep_spare = False
        await asyncio.gather(*(self.stop(worker, "shutdown") for worker in self.workers))

    def warm_spare(self) -> None:
        """Start the process that becomes the next worker, if one is kept and there is none."""
        if self._keep_spare and self._spare is None:
            self._spare = self._launch("spare", SPARE_IMPORTS, None)

    async def watch(self) -> None:
        """Kill workers that have gone silent; runs as long as the pool."""
        while True:
            await asyncio.sleep(min(1.0, self._heartbeat_timeout / 4))
            now = time.monotonic()
            for worker in self.workers:
                step_timeout = self._step_timeout(worker)
                if worker.state in _SERVING and worker.last_seen < now - step_timeout:
                    # SIGKILL: a stopped or spinning process does not obey anything less.
                    worker.cause = f"silent for {step_timeout:g} s"
                    worker.handle.kill()

    def _step_timeout(self, worker: Worker) -> float:
        """Seconds for which a worker may be silent: some engines' steps are long."""
        own = worker.ready.step_timeout if worker.ready else 0.0
        return max(self._heartbeat_timeout, own)

    # ---- processes ---------------------------------------------------------------------------

    def _take_spare(self, engine: str) -> Worker | None:
        if not engine_info(engine).preimport:
            return None
        worker, self._spare = self._spare, None
        return worker

    def _launch(self, name: str, imports: Sequence[str], visible_devices: str | None) -> Worker:
        worker = Worker(self._launcher.launch(name, imports, visible_devices), id=name)
        self._workers.add(worker)
        loop = asyncio.get_running_loop()
        loop.add_reader(worker.handle.events_fd, self._on_readable, worker)
        loop.add_reader(worker.handle.output_fd, self._on_output, worker)
        loop.add_reader(worker.handle.sentinel, self._on_exit, worker)
        return worker

    async def _until(self, worker: Worker, states: set[str]) -> None:
        while worker.state not in states:
            if worker.ended.is_set():
                failure = worker.load_failure
                code = failure.code if failure else "MODEL_LOAD_FAILED"
                text = failure.message if failure else f"The worker {worker.cause} while loading."
                raise StartFailed(code, text)
            worker.changed.clear()
            await worker.changed.wait()

    async def _end(self, worker: Worker, cause: str, state: str = "failed") -> None:
        worker.state, worker.cause = state, cause
        worker.handle.kill()
        await worker.ended.wait()

    # ---- what a worker says ------------------------------------------------------------------

    def _on_readable(self, worker: Worker) -> None:
        """Take what is in the pipe; its end or nonsense in it ends the worker."""
        try:
            data = os.read(worker.handle.events_fd, _READ_BYTES)
            events = worker.reader.feed(data)
        except BlockingIOError:
            return
        except BadFrame as error:
            worker.cause = f"wrote a malformed frame ({error})"
            self._stop_reading(worker)
            worker.handle.kill()
            return
        if not data:
            self._stop_reading(worker)
            worker.handle.kill()
            return
        worker.last_seen = time.monotonic()
        self._deliver(worker, events)

    def _deliver(self, worker: Worker, events: list[Event]) -> None:
        """Pass on what is about jobs; take note of what is about the worker."""
        jobs: list[JobEvent] = []
        for event in events:
            if isinstance(event, JobEvent):
                jobs.append(event)
            else:
                self._note(worker, event)
        if jobs:
            self._listener.on_events(worker, jobs)

    def _note(self, worker: Worker, event: WorkerEvent) -> None:
        match event:
            case Heartbeat():
                worker.heartbeat = event
                worker.last_heartbeat = datetime.now(UTC)
            case Imported():
                worker.state = "warm"
            case LoadProgress(fraction=fraction):
                self._listener.on_progress(worker, fraction)
            case Ready():
                worker.ready, worker.state = event, "ready"
                self._ended.pop(worker.id, None)
            case LoadFailed():
                worker.load_failure = event
            case _:
                assert_never(event)
        worker.changed.set()

    def _stop_reading(self, worker: Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.handle.events_fd)

    def _on_exit(self, worker: Worker) -> None:
        """The process has ended: hear its last words, then let everybody know, once."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.handle.sentinel)
        if loop.remove_reader(worker.handle.output_fd):
            self._drain_output(worker)
        worker.output.end()
        if loop.remove_reader(worker.handle.events_fd):
            self._drain(worker)
        was_ready = worker.state in _SERVING
        code = worker.handle.reap()
        if worker.state != "stopped":
            worker.state = "failed"
            worker.cause = worker.cause or describe_exit(code)
            self._remember(worker)
        self._workers.discard(worker)
        if worker is self._spare:
            self._spare = None
        worker.ended.set()
        worker.changed.set()
        worker.handle.close()
        if was_ready:
            self._listener.on_lost(worker, worker.cause or "stopped")

    def _on_output(self, worker: Worker) -> None:
        try:
            data = os.read(worker.handle.output_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            worker.output.feed(data)
        else:
            asyncio.get_running_loop().remove_reader(worker.handle.output_fd)

    def _drain_output(self, worker: Worker) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(worker.handle.output_fd, _READ_BYTES):
                worker.output.feed(data)

    def _remember(self, worker: Worker) -> None:
        self._ended[worker.id] = worker
        self._ended.move_to_end(worker.id)
        if len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)

    def forget_model(self, model: str) -> None:
        """Drop the records of a model's failed workers."""
        for worker in self.ended:
            if worker.spec is not None and worker.spec.model == model:
                del self._ended[worker.id]

    def _drain(self, worker: Worker) -> None:
        with contextlib.suppress(BlockingIOError, BadFrame):
            while data := os.read(worker.handle.events_fd, _READ_BYTES):
                self._deliver(worker, worker.reader.feed(data))


def describe_exit(code: int | None) -> str:
    """Say in words how a process ended; negative codes are signals."""
    if code is not None and code < 0:
        return f"was ended by signal {-code}"
    return f"exited with code {code}"
