"""The pool owns worker processes, on the gateway's event loop. Only it writes a Worker or ends one.

A start ends in Ready or in :class:`StartFailed`, never in waiting. The end of a process is told by
the system, silence by the watchdog, nonsense by the reader of its pipe; all end in one call of
``on_lost``. Whatever a worker does, no call here waits for it, and none raises.
"""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, assert_never

from workers.codes import DRIVER_STARTED, LoadCode
from workers.ends import cause_of, explain, note_end
from workers.engines.registry import ENGINES, engine_info
from workers.faults import FAULTS, STUCK, Fault
from workers.framing import BadFrame
from workers.launcher import Launcher
from workers.oom_kills import OomKills
from workers.output import last_bytes
from workers.protocol import (
    Broken,
    CopyProgress,
    Ends,
    Event,
    Heartbeat,
    Imported,
    JobEvent,
    Load,
    LoadFailed,
    LoadProgress,
    OfJob,
    Ready,
    Stop,
    WorkerEvent,
    Working,
)
from workers.watchdog import Watchdog
from workers.worker import SERVING, Worker

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16  #: in one turn of the event loop: a worker that floods leaves it to others
_OUTPUT_BYTES = 1 << 14  #: likewise, of what it writes to its standard streams
_MOST_ENDED = 64  #: workers that ended badly and are still shown
_ENDING_SECONDS = 5.0  #: between asking a worker to stop and killing it
_KILLED_SECONDS = 10.0  #: between killing a process and going on without its end

#: The states in which a worker may say so: what it says at another time would undo what is known.
_EXPECTED: dict[type[WorkerEvent], tuple[str, ...]] = {
    Imported: ("starting",),
    LoadProgress: ("loading",),
    CopyProgress: ("loading",),
    LoadFailed: ("loading",),
    Ready: ("loading",),
    Working: ("loading", *SERVING),
    Broken: SERVING,
}

SPARE_IMPORTS = ENGINES["text"].preimport  #: what most workers need; others import more on top


class StartFailed(Exception):
    """A worker did not become ready."""

    def __init__(self, code: LoadCode, message: str, fault: Fault | None = None) -> None:
        """``fault``: the class of what went wrong, if it has one."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.fault = fault


class Listener(Protocol):
    """Receives the events of workers; called on the event loop, so it must not block."""

    def on_events(self, worker: Worker, events: list[JobEvent]) -> None:
        """Raises BadFrame for an event that does not fit its job; then the worker is ended."""
        ...

    def on_progress(self, worker: Worker, fraction: float) -> None: ...
    def on_lost(self, worker: Worker, cause: str) -> None:
        """Take note that a ready worker has ended, whatever ended it; called once."""
        ...


class WorkerPool:
    def __init__(
        self,
        launcher: Launcher,
        listener: Listener,
        *,
        heartbeat_timeout: float,
        load_timeout: float,
        spare: bool,
        oom_kills: OomKills | None = None,
    ) -> None:
        self._launcher = launcher
        self._listener = listener
        self._watchdog = Watchdog(heartbeat_timeout, load_timeout)
        self._keep_spare = spare
        self._oom_kills = oom_kills or OomKills()
        self._spare: Worker | None = None
        self._workers: set[Worker] = set()
        self._ended: OrderedDict[str, Worker] = OrderedDict()

    @property
    def ended(self) -> list[Worker]:
        """Return the last incarnation of each worker that ended badly and was not replaced."""
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
        try:
            worker = self._launch(worker_id, imports, spec.visible_devices)
        except OSError as error:
            text = f"No worker process could be started ({error.strerror})."
            raise StartFailed("MODEL_LOAD_FAILED", text) from error
        return await self._load(worker, worker_id, spec)

    async def _load(self, worker: Worker, worker_id: str, spec: Load) -> Worker:
        """Have a process become the worker of ``spec``. Raises :class:`StartFailed`."""
        worker.id, worker.spec = worker_id, spec
        try:
            await self._until(worker, {"warm"})
            worker.state = "loading"
            worker.send(spec)
            await self._until(worker, {"ready"})
        except asyncio.CancelledError:
            await self._end(worker, "the load was given up")
            raise
        return worker

    async def stop(self, worker: Worker, cause: str = "stopped") -> None:
        """Ask a worker to leave, then make it; returns when it is gone or stuck. Not reported as
        lost."""
        if worker.state in ("stopped", "failed"):
            await self._await_end(worker)
            return
        listening = worker.state in SERVING
        worker.state, worker.cause = "stopped", cause
        if listening:
            worker.send(Stop())
            if await worker.ends_within(_ENDING_SECONDS):
                return
        self._kill(worker, cause)
        await self._await_end(worker)

    def drain(self, worker: Worker) -> None:
        """Mark a worker that gets nothing new; it is stopped when it has finished."""
        if worker.state == "ready":
            worker.state = "draining"

    async def kill(self, worker: Worker, cause: str) -> None:
        """End a worker at once; returns when it is gone or stuck, and reports it as lost."""
        self._kill(worker, cause)
        await self._await_end(worker)

    async def close(self) -> None:
        """Stop all workers, the spare too. One that the system does not end is left to it."""
        self._keep_spare = False
        stops = [asyncio.ensure_future(self.stop(each, "shutdown")) for each in self.workers]
        if not stops:
            return
        _, late = await asyncio.wait(stops, timeout=2 * _ENDING_SECONDS)
        for stop in late:
            stop.cancel()
        for worker in self.workers:
            self._give_up(worker)

    def stuck(self, worker_id: str) -> Worker | None:
        """Return the worker of this id that was killed and has not ended, if there is one."""
        return next((each for each in self._workers if each.stuck and each.id == worker_id), None)

    def warm_spare(self) -> None:
        """Start the process that becomes the next worker, if one is kept and there is none."""
        if not self._keep_spare or self._spare is not None:
            return
        try:
            self._spare = self._launch("spare", SPARE_IMPORTS, None)
        except OSError as error:
            log.warning("no spare worker could be started: %s", error.strerror)

    async def watch(self) -> None:
        """Kill workers that have gone silent or do not load; runs as long as the pool."""
        while True:
            await asyncio.sleep(self._watchdog.interval)
            self._oom_kills.refresh()
            for worker in self.workers:
                if worker.killed is not None:
                    worker.killed += self._watchdog.interval
                    if worker.killed > _KILLED_SECONDS:
                        self._give_up(worker)
                elif cause := self._watchdog.tick(worker):
                    # SIGKILL: a stopped or spinning process does not obey anything less.
                    self._kill(worker, cause)

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
        worker.handle.watch(lambda: self._on_exit(worker))
        return worker

    async def _until(self, worker: Worker, states: set[str]) -> None:
        while worker.state not in states:
            if worker.ended.is_set() or worker.stuck:
                raise _start_failed(worker)
            worker.changed.clear()
            await worker.changed.wait()

    async def _end(self, worker: Worker, cause: str) -> None:
        worker.state = "stopped"
        self._kill(worker, cause)
        await self._await_end(worker)

    def _kill(self, worker: Worker, cause: str | None = None) -> None:
        worker.cause = cause or worker.cause
        if worker.killed is None:
            worker.killed = 0.0
        worker.handle.kill()

    async def _await_end(self, worker: Worker) -> None:
        """Wait for the end of a worker that was killed, but not for ever."""
        if not worker.stuck and not await worker.ends_within(_KILLED_SECONDS):
            self._give_up(worker)

    def _give_up(self, worker: Worker) -> None:
        """Go on without the end of a process that hangs in the kernel; said once."""
        if worker.stuck or worker.ended.is_set():
            return
        log.error("%s: process %d %s. %s", worker.id, worker.pid, STUCK.cause, STUCK.sentence)
        worker.stuck, was_ready = True, worker.state in SERVING
        if worker.state != "stopped":
            worker.state, worker.fault = "failed", STUCK
            worker.cause = worker.cause or STUCK.cause
        if worker is self._spare:
            self._spare = None
        self._stop_reading(worker)
        worker.changed.set()
        if was_ready:
            self._listener.on_lost(worker, worker.cause or STUCK.cause)

    # ---- what a worker says ------------------------------------------------------------------

    def _on_readable(self, worker: Worker) -> None:
        """Take what is in the pipe; its end, or nonsense in it, ends the worker."""
        try:
            data = os.read(worker.handle.events_fd, _READ_BYTES)
            self._take(worker, data)
        except BlockingIOError:
            return
        except BadFrame as error:
            self._stop_reading(worker)
            self._kill(worker, f"wrote a malformed frame ({error})")
        except Exception:  # whatever went wrong here, its jobs are run again or failed
            log.exception("%s: its events could not be processed", worker.id)
            self._stop_reading(worker)
            self._kill(worker, "wrote what could not be processed")
        else:
            if not data:
                self._stop_reading(worker)
                self._kill(worker)

    def _take(self, worker: Worker, data: bytes) -> None:
        events = worker.reader.feed(data)
        if events:
            worker.silence = 0.0
            self._deliver(worker, events)

    def _deliver(self, worker: Worker, events: list[Event]) -> None:
        """Pass on what is about jobs; take note of what is about the worker."""
        jobs: list[JobEvent] = []
        for event in events:
            if isinstance(event, OfJob):
                jobs.append(event)
                if isinstance(event, Ends):
                    worker.note_final(event)
            else:
                self._note(worker, event)
        if jobs:
            self._listener.on_events(worker, jobs)

    def _note(self, worker: Worker, event: WorkerEvent) -> None:
        """Raises BadFrame for an event that is out of order."""
        if worker.state == "stopped":
            return  # it is told to go, whatever it has become
        if worker.state not in _EXPECTED.get(type(event), (worker.state,)):
            raise BadFrame(f"{type(event).__name__} while {worker.state}")
        match event:
            case Heartbeat() | Working():
                worker.note_life(event)
            case Imported():
                worker.state = "warm"
            case CopyProgress() | LoadProgress():
                self._listener.on_progress(worker, worker.note_progress(event))
            case Ready():
                worker.ready, worker.state = event, "ready"
                self._ended.pop(worker.id, None)
            case LoadFailed():
                worker.note_load_failure(event)
            case Broken():
                worker.fault = FAULTS[event.fault] if event.fault else None
                log.error("%s: %s", worker.id, explain(worker.fault, event.error))
                self._kill(worker, cause_of(worker.fault, event.error))
            case _:
                assert_never(event)
        worker.changed.set()

    def _stop_reading(self, worker: Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.handle.events_fd)

    def _on_exit(self, worker: Worker) -> None:
        """Read the last words of a process that has ended, then tell its end, once."""
        code = worker.handle.reap()
        self._hear_out(worker)
        was_ready = worker.state in SERVING
        if worker.state != "stopped":
            worker.state = "failed"
            note_end(worker, code, self._oom_kills)
            self._remember(worker)
        self._workers.discard(worker)
        if worker is self._spare:
            self._spare = None
        worker.ended.set()
        worker.changed.set()
        worker.handle.close()
        if was_ready:
            self._listener.on_lost(worker, worker.cause or "stopped")

    def _hear_out(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        if loop.remove_reader(worker.handle.output_fd):
            for data in last_bytes(worker.handle.output_fd):
                worker.output.feed(data)
        worker.output.end()
        if loop.remove_reader(worker.handle.events_fd):
            try:
                for data in last_bytes(worker.handle.events_fd):
                    self._take(worker, data)
            except BadFrame as error:
                worker.cause = worker.cause or f"wrote a malformed frame ({error})"
            except Exception:  # as above
                log.exception("%s: its last events could not be processed", worker.id)

    def _on_output(self, worker: Worker) -> None:
        try:
            data = os.read(worker.handle.output_fd, _OUTPUT_BYTES)
        except BlockingIOError:
            return
        if data:
            worker.output.feed(data)
        else:
            asyncio.get_running_loop().remove_reader(worker.handle.output_fd)

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


def _start_failed(worker: Worker) -> StartFailed:
    """Return why a worker that has ended did not become ready."""
    if (failure := worker.load_failure) is not None:
        return StartFailed(failure.code, failure.message, worker.fault)
    advice = f" {worker.fault.sentence}" if worker.fault else ""
    text = f"The model's worker {worker.cause}.{advice}"
    return StartFailed("MODEL_LOAD_FAILED", text, worker.fault)
