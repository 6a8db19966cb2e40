"""Where the events of one job arrive, and how whoever asked for it reads them."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from bitinglip import errors
from bitinglip.scheduling.job import Job
from workers import protocol


@dataclass(frozen=True, slots=True)
class Queued:
    """The job waits; ``eta`` in seconds where it can be said."""

    position: int
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Loading:
    """The job's model is being loaded; ``progress`` from 0 to 1."""

    progress: float


Event = Queued | Loading | protocol.JobEvent


class Inbox:
    """One job's events, in order, ending in exactly one final event.

    One reader. Events that came while it was busy are handed over together, so a slow reader
    costs fewer wake-ups, not more.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.worker_id: str | None = None
        self.final: protocol.Final | None = None
        self.sent_any = False  #: the client has seen output, so the job cannot be run again
        self.submitted = time.monotonic()
        self.dispatched: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self._started = False
        self._events: list[Event] = []
        self._arrived = asyncio.Event()

    def dispatch(self, worker_id: str) -> None:
        """Note that a worker has the job."""
        self.worker_id = worker_id
        self.dispatched = time.monotonic()

    def put(self, event: Event) -> None:
        """Deliver an event; whatever comes after the final one is dropped."""
        if self.final is not None:
            return
        now = time.monotonic()
        match event:
            case protocol.Started() if self._started:
                return  # it was run again on another worker, which is not the client's affair
            case protocol.Started():
                self._started = True
            case protocol.Token():
                self.sent_any = True
                self.first_token = self.first_token or now
            case protocol.Done() | protocol.Failed() | protocol.Cancelled():
                self.final = event
                self.ended = now
            case _:
                pass
        self._events.append(event)
        self._arrived.set()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Lists of the events that came since the last one; ends with the final event."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            yield events
            if self.final is not None and not self._events:
                return

    async def result(self) -> protocol.Done:
        """Wait for the end. Raises the error that a failed or cancelled job ended in."""
        async for _ in self.batches():
            pass
        match self.final:
            case protocol.Done() as done:
                return done
            case protocol.Failed() as failed:
                raise error_of(failed)
            case _:
                raise errors.TaskCancelled()

    @property
    def queue_time(self) -> float:
        """Seconds from submission until a worker had it, or until now."""
        return (self.dispatched or self.ended or time.monotonic()) - self.submitted


def error_of(failed: protocol.Failed) -> errors.BitingLipError:
    return errors.from_code(failed.code, failed.message, param=failed.param, details=failed.details)
