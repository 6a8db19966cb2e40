"""The event log holds a job's events in order, written once, for any number of readers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

import msgspec

from bitinglip import errors
from bitinglip.guard.outputs import OutputGuard
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.kinds import input_bytes, without_input
from bitinglip.scheduling.memory import event_bytes
from workers import protocol


@dataclass(frozen=True, slots=True)
class Queued:
    """The job waits; ``eta`` is in seconds, None if unknown."""

    position: int
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Loading:
    """The job's model is being loaded; ``progress`` from 0 to 1."""

    progress: float


_OUTPUT = (protocol.TextDelta, protocol.AudioDelta, protocol.SegmentDelta)
Event = Queued | Loading | protocol.JobEvent


class EventLog:
    """Holds one job's events, which end in exactly one final event.

    Every reader, early or late, sees each event once, in order. Events that came while a reader was
    busy are handed over together, so a slow one costs fewer wake-ups.
    """

    def __init__(
        self,
        job: Job,
        clock: Callable[[], float] = time.monotonic,
        *,
        guard: OutputGuard | None = None,
    ) -> None:
        """``guard``: what the worker's events pass through before they are put here."""
        self.job = job
        self.guard = guard
        self._clock = clock
        self.worker_id: str | None = None
        self.final: protocol.Final | None = None
        self.output_seen = False  #: a reader has seen output, so the job cannot run again
        self.submitted = clock()
        self._submitted_at = time.time()
        self.load_began: float | None = None  #: it waits for its model since then
        self.dispatched: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self._started = False
        self._events: list[Event] = []
        self._read = 0  #: how many of them the furthest reader has seen
        self._waiters: list[asyncio.Future[None]] = []  #: of any event
        self._end_waiters: list[asyncio.Future[None]] = []  #: of the final one alone

    def close(self) -> int:
        """Drop the input of a job that has ended; returns the bytes that the rest holds."""
        self.job = without_input(self.job)
        return input_bytes(self.job) + event_bytes(self._events)

    @property
    def events(self) -> Sequence[Event]:
        """Return what has happened so far, without output that was made again."""
        return self._events

    @property
    def work(self) -> protocol.Job:
        """Return what a worker is to do, as the guard has left it."""
        return self.job.work if self.guard is None else self.guard.work

    @property
    def message(self) -> protocol.Job:
        """Return what is sent to a worker, with its trace and, of a text, its priority."""
        told: dict[str, Any] = {} if self.job.trace is None else {"trace": self.job.trace}
        if isinstance(self.work, protocol.TextJob):
            told["priority"] = self.job.priority.level
        return msgspec.structs.replace(self.work, **told) if told else self.work

    @property
    def altered(self) -> bool:
        """Return whether the guard has left something out, or has failed and let all pass."""
        return self.guard is not None and self.guard.altered

    @property
    def status(self) -> str:
        """Return the status in the contract's words."""
        if self.final is not None:
            return _status_of(self.final)
        if self._started:
            return "running"
        return "loading" if self._events and isinstance(self._events[-1], Loading) else "queued"

    def dispatch(self, worker_id: str) -> None:
        """Note that a worker has the job; drop unseen output of an earlier worker."""
        if self.dispatched is not None:
            self.reset_output()
        self.worker_id = worker_id
        self.dispatched = self._clock()

    def put(self, event: Event) -> None:
        """Append an event; drop it if it comes after the final one."""
        if self.final is not None:
            return
        if isinstance(event, _OUTPUT):
            self.first_token = self.first_token or self._clock()
        elif isinstance(event, protocol.Ends):
            self.final, self.ended = event, self._clock()
        elif isinstance(event, protocol.Started):
            if self._started:
                return  # it was run again on another worker, which is not the client's affair
            self._started = True
        elif isinstance(event, (Queued, Loading)):
            if isinstance(event, Loading) and self.load_began is None:
                self.load_began = self._clock()
            if self._overtakes(event):
                self._events.pop()
        elif not isinstance(event, protocol.Progress):
            assert_never(event)
        self._events.append(event)
        self._wake()

    def reset_output(self) -> None:
        """Drop output that no reader has seen; the job runs again from its start."""
        self._events = [event for event in self._events if not isinstance(event, _OUTPUT)]
        self.first_token = None
        self.dispatched = None
        if self.guard is not None:
            self.guard.reset()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Yield lists of new events, from the first on; end with the final event."""
        seen = 0
        while True:
            if seen == len(self._events):
                await _woken(self._waiters)
            events = self._events[seen:]
            seen += len(events)
            self._read = max(self._read, seen)
            self.output_seen = self.output_seen or self.first_token is not None
            yield events
            if self.final is not None and seen == len(self._events):
                return

    async def started(self) -> None:
        """Wait until work on it has begun or it has ended; its output stays unread."""
        while not self._started and self.final is None:
            await _woken(self._waiters)

    async def end(self) -> protocol.Final:
        """Wait for the final event, without reading the others."""
        while self.final is None:
            await _woken(self._end_waiters)
        return self.final

    async def result(self) -> protocol.Success:
        """Wait for the end. Raises the error of a failed or cancelled job."""
        while self.final is None:
            await _woken(self._end_waiters)
        final = self.final
        if isinstance(final, protocol.Failed):
            raise error_of(final)
        if isinstance(final, protocol.Cancelled):
            raise errors.TaskCancelled()
        return final

    @property
    def place(self) -> Queued | None:
        """Return the last announced position in the queue; None once the job no longer waits."""
        if not self._events or self.status != "queued":
            return None
        return next((each for each in reversed(self._events) if isinstance(each, Queued)), None)

    @property
    def completed_at(self) -> datetime | None:
        """Return the moment of its end; durations are by the monotonic clock."""
        if self.ended is None:
            return None
        return datetime.fromtimestamp(self._submitted_at + self.ended - self.submitted, UTC)

    @property
    def queue_time(self) -> float:
        """Return the seconds from submission until a worker had it, or until now."""
        return (self.dispatched or self.ended or self._clock()) - self.submitted

    def _overtakes(self, event: Queued | Loading) -> bool:
        """Return True for a position or progress that replaces one no reader has seen yet."""
        return len(self._events) > self._read and type(self._events[-1]) is type(event)

    def _wake(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            _wake_all(waiters)
        if self._end_waiters and self.final is not None:
            waiters, self._end_waiters = self._end_waiters, []
            _wake_all(waiters)


def _woken(waiters: "list[asyncio.Future[None]]") -> "asyncio.Future[None]":
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    return waiter


def _wake_all(waiters: "Iterable[asyncio.Future[None]]") -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _status_of(final: protocol.Final) -> str:
    if isinstance(final, protocol.Succeeds):
        return "completed"
    return "failed" if isinstance(final, protocol.Failed) else "cancelled"


def error_of(failed: protocol.Failed) -> errors.BitingLipError:
    return errors.from_code(
        failed.code,
        failed.message,
        param=failed.param,
        details=failed.details,
        retry_after=failed.retry_after,
    )


def failed_with(job_id: str, error: errors.BitingLipError) -> protocol.Failed:
    """Make the final event of a job that ended in an error of the gateway."""
    return protocol.Failed(
        id=job_id,
        code=errors.answer(error).code,
        message=error.message,
        param=error.param,
        details=error.details,
        retry_after=error.retry_after,
    )


def put_guarded(event_log: EventLog, event: protocol.JobEvent) -> errors.BitingLipError | None:
    """Put what the guard lets pass of an event; return the error that is to end the job.

    A job that its worker has ended is ended here.
    """
    if event_log.final is not None or event_log.guard is None:
        return None
    try:
        for shown in event_log.guard.take(event):
            event_log.put(shown)
    except errors.BitingLipError as error:
        if not isinstance(event, protocol.Ends):
            return error
        event_log.put(failed_with(event.id, error))
    return None
