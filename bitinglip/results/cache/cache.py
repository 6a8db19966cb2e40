"""Caches responses: requests whose answer is known, or is being computed, run no job.

The first of equal requests leads: its job runs. The others follow: they wait for its end and are
answered from what it made, and refused with it where the request itself is at fault. The job lives
until no request waits for it any more, the leader or a follower. A leader without an answer hands
over: the next follower leads.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

from bitinglip.access.keys import Caller
from bitinglip.access.usage.meter import Held
from bitinglip.errors import TaskCancelled, Timeout
from bitinglip.errors import answer as answer_to
from bitinglip.results.cache.clearing import Clearing
from bitinglip.results.cache.control import CacheControl
from bitinglip.results.cache.entries import Answer, Entries
from bitinglip.results.cache.identity import Identity, repeatable
from bitinglip.results.cache.replay import is_whole, pack, unpack
from bitinglip.results.files import Files, outputs_of
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog, error_of
from bitinglip.scheduling.job import Job
from bitinglip.settings import Settings
from bitinglip.tasks.revocation import Revocation
from bitinglip.telemetry.cache_metrics import CacheMetrics
from model_store.store import ModelStore
from workers import protocol

if TYPE_CHECKING:
    from bitinglip.results.cache.redis_answers import AnswersInRedis

log = structlog.get_logger(__name__)

HIT, MISS, BYPASS = b"HIT", b"MISS", b"BYPASS"  #: values of X-Cache
_BAD_REQUEST = 400
EXPIRE_SECONDS = 60.0  #: between two looks for answers that are too old


@dataclass(frozen=True, slots=True)
class Opened:
    """Holds the event log that answers a request, and how it came about."""

    event_log: EventLog
    outcome: bytes


class _Flight:
    """Holds a job that runs for the leader and the followers of one request."""

    def __init__(self, event_log: EventLog, holds: ExitStack) -> None:
        self.event_log = event_log
        self.ended = asyncio.Event()
        self.answer: Answer | None = None
        self.refused: protocol.Failed | None = None  #: because of the request: as any repeat would
        self.shared = True  #: False once its answer turned out to be for no other request
        self._holds = holds
        self._waiting = 0

    def serves(self, job: Job) -> bool:
        """Return whether a job may wait for this one.

        It must not wait for one that stands behind it in the queue.
        """
        ahead = self.event_log.job.priority.level >= job.priority.level
        return self.shared and (ahead or self.event_log.status not in ("queued", "loading"))

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Keep the job alive; the last one to leave ends it."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._holds.close()


class ResponseCache:
    """Owns all cached answers, and the requests that wait for one another."""

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        dispatcher: Dispatcher,
        files: Files,
        uploads: Uploads,
        revocation: Revocation,
        metrics: CacheMetrics,
        *,
        clearing: Clearing,
        shared: "AnswersInRedis | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        own = settings.cache
        self.enabled = own.responses  #: else it is never asked
        of_key = own.max_bytes // 2 if own.max_bytes_per_key is None else own.max_bytes_per_key
        self.entries = Entries(own.max_bytes, of_key, own.ttl, clock)
        self._identity = Identity(settings, store)
        self._dispatcher = dispatcher
        self._files = files
        self._uploads = uploads
        self._revocation = revocation
        self._metrics = metrics
        self._shared = shared
        self._clearing = clearing
        clearing.hear(self._clear_all)
        self._flights: dict[bytes, _Flight] = {}
        self._settling: set[asyncio.Task[None]] = set()
        metrics.watch(lambda: (self.entries.bytes, len(self.entries), self.entries.evicted))

    @asynccontextmanager
    async def open(self, job: Job, caller: Caller, asked: CacheControl) -> AsyncIterator[Opened]:
        """Open what answers a job, around the whole answer, and discard its uploads in the end.

        Raises what ``Dispatcher.open`` raises, and QuotaExceeded where the answer is known, too;
        Timeout, TaskCancelled or the other's refusal where it had to wait for another request.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            held = stack.enter_context(ExitStack())
            held.callback(self._uploads.discard, job)
            if not asked.store or not repeatable(job):
                part = None
                if self._dispatcher.shared is not None:
                    part = await self._dispatcher.reserve(job)
                yield Opened(stack.enter_context(self._dispatcher.open(job, held=part)), BYPASS)
                return
            key = self._identity.key(job, caller, await _digests(job))
            answer, reserved = await self._find_or_reserve(key, job, asked, began)
            self._metrics.asked(hit=answer is not None)
            if answer is not None:
                await self._dispatcher.charge_cached(job)
                yield Opened(stack.enter_context(self._replayed(answer, job, began)), HIT)
                return
            left = max(0.0, job.timeout - (time.monotonic() - began))
            leading = msgspec.structs.replace(job, timeout=left)
            flight = self._lead(key, leading, held.pop_all(), reserved)
            stack.enter_context(flight.joined())
            yield Opened(flight.event_log, MISS)

    def clear(self, chosen: Callable[[str], bool] = lambda _model: True) -> None:
        """Forget the answers of the models that are chosen; jobs that run fill it again."""
        self.entries.clear(chosen)
        for key, flight in list(self._flights.items()):
            if chosen(flight.event_log.job.model):
                del self._flights[key]

    async def clear_everywhere(self, chosen: Callable[[str], bool]) -> None:
        """Forget the answers of the models that are chosen, and have other gateways forget all.

        So is what Redis has, whose names tell nothing. Raises DiskFull or DatabaseUnavailable where
        others cannot be told.
        """
        self.clear(chosen)
        if self._shared is not None:
            await self._shared.forget()
        await self._clearing.tell()

    def _clear_all(self) -> None:
        """Forget everything, because another gateway was told to."""
        self.clear()
        if self._shared is not None:
            self._shared.refuse_older()

    async def expire(self) -> None:
        """Remove what is too old; requests do that too, while there are any."""
        self.entries.expire()

    async def close(self) -> None:
        for settling in list(self._settling):
            settling.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        if self._shared is not None:
            await self._shared.close()

    async def _find_or_reserve(
        self, key: bytes, job: Job, asked: CacheControl, began: float
    ) -> tuple[Answer | None, Held | None]:
        """Do as ``_find`` does; where the job is to run, reserve its part of shared quotas."""
        while (answer := await self._find(key, job, asked, began)) is None:
            shared = self._dispatcher.shared
            if shared is None and self._shared is None:
                return None, None
            reserved = await self._dispatcher.reserve(job)
            flight = self._flights.get(key) if asked.read else None
            if flight is None or not flight.serves(job):
                return None, reserved
            if reserved is not None and shared is not None:  # an equal request leads by now
                shared.drop(job.key_id, reserved)
        return answer, None

    async def _find(self, key: bytes, job: Job, asked: CacheControl, began: float) -> Answer | None:
        """Return the answer that is kept, or that another request gets; None to run the job.

        Raises what ``_follow`` raises, and the refusal that another request gets.
        """
        while asked.read:
            answer = self.entries.get(key, asked.max_age)
            flight = self._flights.get(key)
            if answer is not None:
                return answer
            if flight is None or not flight.serves(job):
                return await self._of_others(key, asked)
            await self._follow(flight, job, job.timeout - (time.monotonic() - began))
            if flight.refused is not None:
                raise error_of(flight.refused)
            if flight.answer is not None or not flight.shared:
                return flight.answer
        return None

    async def _of_others(self, key: bytes, asked: CacheControl) -> Answer | None:
        """Return the answer that another gateway was given, if it is known here."""
        return None if self._shared is None else await self._shared.get(key, asked.max_age)

    async def _follow(self, flight: _Flight, job: Job, seconds: float) -> None:
        """Wait for the end of another request's job. Raises Timeout, TaskCancelled or QueueFull."""
        with (
            self._dispatcher.holding(job),
            self._revocation.connection(job.claim) as revoked,
            flight.joined(),
        ):
            waits = [asyncio.create_task(each.wait()) for each in (flight.ended, revoked)]
            try:
                done, _ = await asyncio.wait(
                    waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for each in waits:
                    each.cancel()
        if revoked.is_set():
            raise TaskCancelled()
        if not done:
            raise Timeout(f"The request did not finish within {job.timeout:g} s.")

    def _lead(self, key: bytes, job: Job, holds: ExitStack, reserved: Held | None) -> _Flight:
        """Run the job, for those who come as well; ``holds`` is closed when it is over."""
        with holds:
            event_log = holds.enter_context(self._dispatcher.open(job, held=reserved))
            flight = _Flight(event_log, holds.pop_all())
        self._flights[key] = flight
        settling = asyncio.create_task(self._settle(key, flight))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        return flight

    async def _settle(self, key: bytes, flight: _Flight) -> None:
        """Keep the answer of a job that succeeded, and wake who waits for it."""
        event_log, kept = flight.event_log, False
        try:
            final = await event_log.end()
            if isinstance(final, protocol.Succeeds):
                flight.shared = is_whole(final) and not event_log.altered
                flight.answer = await self._pack(event_log) if flight.shared else None
            elif isinstance(final, protocol.Failed):
                at_fault = answer_to(error_of(final)).status == _BAD_REQUEST
                flight.refused = final if at_fault else None
        except Exception:  # a fault in keeping must not take the answer, which stands
            log.exception("an answer could not be cached", task=event_log.job.id)
        finally:
            if self._flights.get(key) is flight:  # else it was cleared, or another has begun
                del self._flights[key]
                if kept := flight.answer is not None:
                    self.entries.put(key, event_log.job.key_id, event_log.job.model, flight.answer)
            flight.ended.set()
        # What was cleared may have been checked for other words than those that name it now.
        if kept and self._shared is not None and flight.answer is not None:
            await self._shared.put(key, flight.answer)

    async def _pack(self, event_log: EventLog) -> Answer | None:
        """Return the answer with its files; None if one of them is gone."""
        files = [await self._files.read(each.id) for each in outputs_of(event_log)]
        if None in files:
            return None
        return pack(event_log, tuple(each for each in files if each is not None))

    @contextmanager
    def _replayed(self, answer: Answer, job: Job, submitted: float) -> Iterator[EventLog]:
        """Yield an event log with a kept answer; its task is found for a while, as others are."""
        event_log = unpack(answer, job, submitted)
        names = [each.id for each in outputs_of(event_log)]
        try:
            with self._files.holding(dict(zip(names, answer.files, strict=True))):
                yield event_log
        finally:
            self._dispatcher.remember(event_log)


async def _digests(job: Job) -> dict[str, str]:
    """Return the digests of a job's uploads, by the fields of its message."""
    paths = job.traits.upload_paths()
    return {name: await asyncio.to_thread(_digest, path) for name, path in paths.items()}


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
