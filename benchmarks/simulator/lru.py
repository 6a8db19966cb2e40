"""Do what most servers do, to compare with: load what is asked for at once, in order of arrival.

The request at the head of one queue goes to its model if that is loaded or loading; else the
idle models leave, the least recently used first, and if all are in use, the head and
all behind it wait. No tiers, no turns between keys, no time that a model may keep its
place.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.simulator.books import Books
from benchmarks.simulator.outcome import Outcome
from benchmarks.simulator.pool import SimulatedPool
from bitinglip import errors
from bitinglip.scheduling.job import Job
from bitinglip.settings import Settings
from workers import protocol
from workers.codes import Code
from workers.pool import StartFailed
from workers.worker import Worker


@dataclass(eq=False, slots=True)
class _Request:
    job: Job
    arrived: float
    ended: "asyncio.Future[protocol.Final]"
    begun: float | None = None


@dataclass(eq=False, slots=True)
class _Host:
    """Holds a model on a device."""

    model: str
    device: str
    size: int
    used_at: float
    worker: Worker | None = None
    leaving: bool = False
    queue: deque[_Request] = field(default_factory=deque)
    running: dict[str, _Request] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        return self.worker is not None and not (self.leaving or self.queue or self.running)


class Lru:
    def __init__(self, settings: Settings, books: Books, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._books = books
        self._clock = clock
        self._devices = {
            f"fake{number}": each.memory_bytes for number, each in enumerate(settings.devices.fake)
        }
        self._hosts: dict[str, _Host] = {}
        self._fifo: deque[_Request] = deque()
        self._waiting: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.pool = SimulatedPool(books, self._placed, self)

    async def answer(self, job: Job) -> Outcome:
        """Raises QueueFull, or ModelDoesNotFit."""
        if self._size(job.model) > max(self._devices.values()):
            raise errors.ModelDoesNotFit()
        if self._waiting.get(job.model, 0) >= self._settings.queue.max_waiting:
            raise errors.QueueFull()
        self._count(job.model, 1)
        request = _Request(job, self._clock(), asyncio.get_running_loop().create_future())
        self._fifo.append(request)
        self._pump()
        try:
            async with asyncio.timeout(job.timeout):
                final = await request.ended
        except TimeoutError:
            self._give_up(request)
            final = protocol.Failed(id=job.id, code="TIMEOUT", message="")
        return Outcome.of((request.begun or self._clock()) - request.arrived, final)

    async def watch(self) -> None:
        await asyncio.get_running_loop().create_future()

    def held(self) -> int:
        return len(self._fifo) + sum(len(h.queue) + len(h.running) for h in self._hosts.values())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- the queue -----------------------------------------------------------------------------

    def _pump(self) -> None:
        while self._fifo:
            model = self._fifo[0].job.model
            host = self._hosts.get(model) or self._begin(model)
            if host is None or host.leaving:
                return
            host.queue.append(self._fifo.popleft())
            self._feed(host)

    def _feed(self, host: _Host) -> None:
        worker = host.worker
        if worker is None or worker.ready is None or host.leaving:
            return
        while host.queue and len(host.running) < worker.ready.slots:
            request = host.queue.popleft()
            self._count(host.model, -1)
            request.begun = self._clock()
            host.running[request.job.id] = request
            worker.send(request.job.work)

    def _count(self, model: str, change: int) -> None:
        self._waiting[model] = self._waiting.get(model, 0) + change

    def _give_up(self, request: _Request) -> None:
        host = self._hosts.get(request.job.model)
        if host is not None and request.job.id in host.running:
            assert host.worker is not None
            host.worker.send(protocol.Cancel(request.job.id))
            return
        self._count(request.job.model, -1)
        (host.queue if host is not None and request in host.queue else self._fifo).remove(request)
        self._pump()

    # ---- models --------------------------------------------------------------------------------

    def _begin(self, model: str) -> _Host | None:
        """Load a model where there is room; else make some, and come again when it is there."""
        size = self._size(model)
        for device in self._devices:
            if size <= self._free(device):
                host = self._hosts[model] = _Host(model, device, size, self._clock())
                self._spawn(self._load(host))
                return host
        self._make_room(size)
        return None

    def _make_room(self, size: int) -> None:
        """Evict where that is enough, and where what leaves was used least recently."""
        choices: list[tuple[float, str, list[_Host]]] = []
        for device in self._devices:
            missing = (
                size
                - self._free(device)
                - sum(
                    host.size
                    for host in self._hosts.values()
                    if host.device == device and host.leaving
                )
            )
            chosen: list[_Host] = []
            for host in self._idle_on(device):
                if missing > 0:
                    chosen.append(host)
                    missing -= host.size
            if missing <= 0:
                latest = max((host.used_at for host in chosen), default=-1.0)
                choices.append((latest, device, chosen))
        for host in min(choices, key=lambda choice: choice[:2])[2] if choices else ():
            host.leaving = True
            self._books.evictions += 1
            self._spawn(self._unload(host))

    def _idle_on(self, device: str) -> list[_Host]:
        idle = [host for host in self._hosts.values() if host.device == device and host.idle]
        return sorted(idle, key=lambda host: host.used_at)

    async def _load(self, host: _Host) -> None:
        own = self._settings.model(host.model)
        spec = protocol.Load(
            model=host.model,
            engine="fake",
            path="",
            max_batch=own.max_batch,
            fake=protocol.FakeOptions(**own.fake.model_dump()),
        )
        try:
            host.worker = await self.pool.start(f"{host.model}/0", spec)
        except StartFailed:
            self._lose(host, "MODEL_LOAD_FAILED")
        self._feed(host)
        self._pump()

    async def _unload(self, host: _Host) -> None:
        assert host.worker is not None
        await self.pool.stop(host.worker)
        del self._hosts[host.model]
        self._pump()

    def _lose(self, host: _Host, code: Code) -> None:
        del self._hosts[host.model]
        self._count(host.model, -len(host.queue))
        for request in [*host.queue, *host.running.values()]:
            self._end(request, protocol.Failed(id=request.job.id, code=code, message=""))

    def _size(self, model: str) -> int:
        return self._settings.model(model).fake.memory_bytes

    def _free(self, device: str) -> int:
        here = (host.size for host in self._hosts.values() if host.device == device)
        return self._devices[device] - sum(here)

    def _placed(self, worker_id: str) -> Mapping[str, int]:
        host = self._hosts[worker_id.rpartition("/")[0]]
        return {host.device: host.size}

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what the pool says --------------------------------------------------------------------

    def on_events(self, worker: Worker, events: list[protocol.JobEvent]) -> None:
        host = self._hosts.get(worker.id.rpartition("/")[0])
        if host is None or host.worker is not worker:
            return
        for event in events:
            if isinstance(event, protocol.Final) and event.id in host.running:
                self._end(host.running.pop(event.id), event)
                host.used_at = self._clock()
        self._feed(host)
        self._pump()

    def on_progress(self, worker: Worker, fraction: float) -> None:
        pass

    def on_lost(self, worker: Worker, cause: str) -> None:  # noqa: ARG002
        host = self._hosts.get(worker.id.rpartition("/")[0])
        if host is not None and host.worker is worker:
            self._lose(host, "WORKER_CRASHED")
            self._pump()

    def _end(self, request: _Request, final: protocol.Final) -> None:
        if not request.ended.done():
            request.ended.set_result(final)
