"""Simulates workers without processes: they obey the protocol's messages and only pretend to work.

The answer to a prompt has as many tokens as its first word says; ``!crash`` ends the worker.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from benchmarks.simulator.batch import Batch
from benchmarks.simulator.books import Books
from workers import protocol
from workers.pool import Listener, StartFailed
from workers.worker import Worker

CRASH = "!crash"
_STEPS = 10  #: of a load
_EXIT_SECONDS = 0.3  #: until a worker that was stopped has given its memory back
_CHARACTERS_PER_TOKEN = 4
_PROMPT_TOKENS_PER_TOKEN = 20  #: read in the time that writing one takes
_KNEE = 0.5  #: the part of its slots from which on an engine's jobs slow each other down
_FASTEST = 1e6  #: tokens per second of a model whose speed is not bounded

Placed = Callable[[str], Mapping[str, int]]  #: worker id -> what was reserved, by device


class SimulatedPool:
    """Stands in for ``WorkerPool``: the same calls, the same words to the listener."""

    ended: tuple[Worker, ...] = ()

    def __init__(self, books: Books, placed: Placed, listener: Listener) -> None:
        self._books = books
        self._placed = placed
        self._numbers = itertools.count(1)
        self._workers: dict[int, Worker] = {}
        self._listener = listener

    @property
    def workers(self) -> list[Worker]:
        return sorted(self._workers.values(), key=lambda worker: worker.id)

    def warm_spare(self) -> None:
        pass

    def drain(self, worker: Worker) -> None:
        worker.state = "draining"

    def forget_model(self, model: str) -> None:
        """Do nothing: no failed worker is remembered here."""

    async def start(self, worker_id: str, spec: protocol.Load) -> Worker:
        """Start a worker that serves the model of ``spec``, after its load time. Raises
        StartFailed."""
        fake = spec.fake or protocol.FakeOptions()
        process = _Process(next(self._numbers), self, fake, spec.max_batch or fake.batch_size)
        worker = Worker(process, "loading", worker_id, spec)
        process.worker = self._workers[process.pid] = worker
        self._books.take(process, _parts(fake.memory_bytes, self._placed(worker_id)))
        began = asyncio.get_running_loop().time()
        try:
            await self._load(worker, fake.load_seconds)
        except asyncio.CancelledError:
            self.end(worker, "the load was given up")
            raise
        finally:
            self._books.loads += 1
            self._books.load_seconds += asyncio.get_running_loop().time() - began
        worker.ready = protocol.Ready(slots=process.slots, memory_bytes=fake.memory_bytes)
        worker.state = "ready"
        return worker

    async def _load(self, worker: Worker, seconds: float) -> None:
        for step in range(1, _STEPS + 1):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds / _STEPS):
                    await worker.ended.wait()
                    raise StartFailed("MODEL_LOAD_FAILED", f"The model's worker {worker.cause}.")
            self._listener.on_progress(worker, step / _STEPS)

    async def stop(self, worker: Worker, cause: str = "stopped") -> None:
        """Returns when the worker is gone. Not reported as lost."""
        if not worker.ended.is_set():
            worker.state, worker.cause = "stopped", cause
            worker.send(protocol.Stop())
        await worker.ended.wait()

    def stuck(self, worker_id: str) -> Worker | None:  # noqa: ARG002  the pool's interface
        """Return None: simulated processes end when they are told to."""
        return None

    def crash(self, model: str) -> None:
        """End all workers of a model at once."""
        for worker in self.workers:
            if worker.spec is not None and worker.spec.model == model:
                self.end(worker, "was ended by signal 9")

    def end(self, worker: Worker, cause: str) -> None:
        """Note that the process is gone, whatever ended it; its memory is free."""
        if self._workers.pop(worker.pid, None) is None:
            return
        process = worker.handle
        assert isinstance(process, _Process)
        process.close()
        self._books.give_back(process)
        served = worker.state in ("ready", "draining")
        if worker.state != "stopped":
            worker.state, worker.cause = "failed", cause
        worker.ended.set()
        worker.changed.set()
        if served:
            self._listener.on_lost(worker, cause)

    def says(self, worker: Worker, events: list[protocol.JobEvent]) -> None:
        self._listener.on_events(worker, events)

    def works(self, process: "_Process", *, begins: bool) -> None:
        self._books.works(process, begins=begins)


class _Process:
    """Stands in for the ``Handle`` of a worker that has no process."""

    worker: Worker
    events_fd = output_fd = -1
    folder = None

    def __init__(
        self, pid: int, pool: SimulatedPool, fake: protocol.FakeOptions, slots: int
    ) -> None:
        self.pid = pid
        self.slots = slots
        self._pool = pool
        speed = fake.tokens_per_second or _FASTEST
        self._batch = Batch(speed, max(1, int(slots * _KNEE)), self._done)
        self._jobs: dict[str, protocol.TextJob] = {}

    def lend(self, spec: protocol.Load) -> None:
        """Do nothing: it keeps nothing."""

    def send(self, commands: Sequence[protocol.Command]) -> None:
        for each in commands:
            match each:
                case protocol.TextJob():
                    self._begin(each)
                case protocol.Cancel(id=job):
                    self._cancel(job)
                case protocol.Stop():
                    loop = asyncio.get_running_loop()
                    loop.call_later(_EXIT_SECONDS, self._pool.end, self.worker, "stopped")
                case _:
                    raise TypeError(f"a worker that serves gets no {type(each).__name__}")

    def _begin(self, job: protocol.TextJob) -> None:
        if (job.prompt or "").startswith(CRASH):
            self.kill()
            return
        if not self._jobs:
            self._pool.works(self, begins=True)
        self._jobs[job.id] = job
        prompt = _prompt_tokens(job)
        self._batch.add(job.id, tokens_of(job) + prompt / _PROMPT_TOKENS_PER_TOKEN)
        self._pool.says(self.worker, [protocol.Started(id=job.id, prompt_tokens=prompt)])

    def _cancel(self, job: str) -> None:
        if self._batch.remove(job):
            self._forget(job)
            self._pool.says(self.worker, [protocol.Cancelled(id=job)])

    def _done(self, jobs: list[str]) -> None:
        ended = [self._forget(job) for job in jobs]
        self._pool.says(
            self.worker,
            [
                protocol.TextDone(
                    id=job.id,
                    choices=(protocol.TextChoice(text="", finish_reason="stop"),),
                    prompt_tokens=_prompt_tokens(job),
                    completion_tokens=tokens_of(job),
                )
                for job in ended
            ],
        )

    def _forget(self, job: str) -> protocol.TextJob:
        found = self._jobs.pop(job)
        if not self._jobs:
            self._pool.works(self, begins=False)
        return found

    def bytes_read(self) -> int | None:
        return None

    def is_stopped(self) -> bool:
        return False

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Do nothing: the pool itself tells of the end."""

    def kill(self) -> None:
        self._pool.end(self.worker, "was ended by signal 9")

    def reap(self) -> int | None:
        return None

    def close(self) -> None:
        """Forget all work."""
        self._batch.clear()
        if self._jobs:
            self._jobs.clear()
            self._pool.works(self, begins=False)


def prompt_for(tokens: int, prompt_tokens: int) -> str:
    """Return a prompt of that length whose answer has so many tokens."""
    return f"{tokens} ".ljust(prompt_tokens * _CHARACTERS_PER_TOKEN, "x")


def tokens_of(job: protocol.TextJob) -> int:
    return min(job.sampling.max_tokens, int((job.prompt or "1").split(" ", 1)[0]))


def _prompt_tokens(job: protocol.TextJob) -> int:
    return len(job.prompt or "") // _CHARACTERS_PER_TOKEN


def _parts(memory: int, reserved: Mapping[str, int]) -> dict[str, int]:
    """Return what it really takes of each device: as much of the whole as was reserved there."""
    whole = sum(reserved.values()) or 1
    return {device: memory * part // whole for device, part in reserved.items()}
