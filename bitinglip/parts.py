"""Opens the parts of the server in groups; the stack closes each in reverse order."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog

from bitinglip.access.key_age import KeyAge
from bitinglip.access.keys import PEPPER, KeyRing, refuse_other_pepper
from bitinglip.access.limits.admission import Admission, now
from bitinglip.access.limits.checkpoint import Checkpoint
from bitinglip.access.limits.store import MemoryStore
from bitinglip.access.limits.token_rates import TokenRates
from bitinglip.access.shared.counts import SharedCounts
from bitinglip.access.tickets import SIGNATURES as TICKETS
from bitinglip.access.tickets import SharedTickets, Tickets
from bitinglip.access.tokens import SIGNING, Tokens
from bitinglip.access.usage.meter import Meter
from bitinglip.access.usage.quotas import Plans
from bitinglip.access.usage.rows import UsageRows
from bitinglip.audit.chain import SEALING
from bitinglip.audit.entry import Action, Entry
from bitinglip.audit.log import AuditLog
from bitinglip.audit.start import begin
from bitinglip.background import RECOVERABLE
from bitinglip.cluster import uses_ray
from bitinglip.db.database import Database
from bitinglip.db.write_behind import WriteBehind
from bitinglip.disk_space import DiskSpace
from bitinglip.gateways.changes import KEYS, TOKENS
from bitinglip.gateways.membership import Membership
from bitinglip.gateways.owner import ALONE
from bitinglip.guard.guard import Guard
from bitinglip.home import Home
from bitinglip.http.connections import Connections
from bitinglip.machine import find_devices, open_page_cache
from bitinglip.redis.broadcast import Broadcast
from bitinglip.redis.opening import SharedRedis
from bitinglip.results.files import UNCLAIMED_SECONDS, Files
from bitinglip.results.uploads import LOST_SECONDS, Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Claim
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from bitinglip.tasks.elsewhere import Elsewhere
from bitinglip.tasks.responses import Responses
from bitinglip.tasks.revocation import Revocation
from bitinglip.tasks.store import TaskStore
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.metrics import Metrics
from bitinglip.telemetry.redis_gauges import watch_redis
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.response import inference_response
from bitinglip.wire.responses.output import ended
from model_store.page_cache import PageCache
from model_store.store import ModelStore
from workers.devices import Devices

if TYPE_CHECKING:
    from bitinglip.redis.link import RedisLink
    from bitinglip.results.cache.redis_answers import AnswersInRedis

log = structlog.get_logger(__name__)


class Access(NamedTuple):
    """Holds the audit log and who may do what."""

    audit: AuditLog
    keys: KeyRing
    tokens: Tokens
    admin_key: str | None  #: if it was made by this start

    @classmethod
    async def open(
        cls,
        settings: Settings,
        home: Home,
        db: Database,
        membership: Membership | None,
        stack: AsyncExitStack,
    ) -> "Access":
        audit = await _open_audit(settings, home, db, owner_of(membership), stack)
        age = KeyAge(settings.security.key_rotation)
        told = {} if membership is None else {"notify": membership.tell}
        keys = await KeyRing.open(db, home.secret(PEPPER), audit, age=age, **told)
        tokens = await Tokens.open(db, keys, home.secret(SIGNING), audit, **told)
        admin_key = await keys.ensure_admin_key(home)
        if membership is not None:
            membership.on_change(KEYS, keys.reload)
            membership.on_change(TOKENS, tokens.reload)
        stack.push_async_callback(flush_at_end, keys.flush_last_used)
        return cls(audit, keys, tokens, admin_key)


async def _open_audit(
    settings: Settings, home: Home, db: Database, owner: str, stack: AsyncExitStack
) -> AuditLog:
    """Open the audit log, and close it last but for the database."""
    audit = AuditLog(
        db,
        home.secret(SEALING),
        folder=home.audit,
        days=settings.audit.retention,
        max_entries=settings.audit.max_entries,
    )
    await begin(audit, settings, owner)

    async def close() -> None:
        await audit.close(Entry(Action.SERVER_STOP, target=owner))  # of this time

    stack.push_async_callback(flush_at_end, close)
    return audit


def owner_of(membership: Membership | None) -> str:
    """Return whose rows this server writes."""
    return ALONE if membership is None else membership.own


def tickets_of(membership: Membership | None, db: Database, home: Home) -> Tickets:
    """Return what makes tickets: for this server, or for all that share the database."""
    return Tickets() if membership is None else SharedTickets(db, home.secret(TICKETS))


async def share(
    settings: Settings, home: Home, db: Database, health: Health, stack: AsyncExitStack
) -> Membership | None:
    """Claim the database, alone or with others; return this server's place among these.

    Raises DatabaseError.
    """
    if not settings.gateways.shared:
        await db.claim()
        return None
    membership = Membership(db, home.identity(), settings.gateways, health)
    await db.claim(membership.own)
    await refuse_other_pepper(db, home.secret(PEPPER))
    await membership.join()
    stack.push_async_callback(flush_at_end, membership.leave)
    return membership


class Counts(NamedTuple):
    """Holds the parts that count what keys use, and the one that writes it."""

    cells: MemoryStore
    token_rates: TokenRates
    meter: Meter
    usage: UsageRows
    write_behind: WriteBehind
    shared_counts: SharedCounts | None  #: with other gateways

    @classmethod
    async def open(
        cls,
        settings: Settings,
        db: Database,
        keys: KeyRing,
        link: "RedisLink | None",
        stack: AsyncExitStack,
    ) -> "Counts":
        """Take over what the last run wrote. Raises DatabaseError."""
        cells = MemoryStore()
        checkpoint = Checkpoint(db, cells)
        await checkpoint.load()
        plans = Plans(settings.limits)
        rates = TokenRates(settings.limits, lambda key_id: keys.terms(key_id)[0], cells, clock=now)
        meter = Meter(lambda key_id: plans.of(*keys.terms(key_id)), rates=rates)
        usage = UsageRows(db, meter, retention=settings.usage.retention)
        await usage.load()
        write_behind = WriteBehind(db, checkpoint, usage)
        stack.push_async_callback(flush_at_end, write_behind.flush)
        if link is None:
            return cls(cells, rates, meter, usage, write_behind, None)
        shared_counts = SharedCounts.over(link, meter, rates, usage, write_behind)
        stack.push_async_callback(shared_counts.quotas.settled)
        return cls(cells, rates, meter, usage, write_behind, shared_counts)

    def admission(
        self, settings: Settings, connections: Connections, dispatcher: Dispatcher
    ) -> Admission:
        """Make the check of all limits, which takes from these counts."""
        return Admission(
            settings.limits,
            per_key=connections.capacity.per_key,
            share=dispatcher.share,
            store=self.cells,
            meter=self.meter,
            shared=self.shared_counts,
        )

    def watch(self, metrics: Metrics, broadcast: Broadcast) -> None:
        """Let the metrics show what gateways share, if they share anything."""
        if self.shared_counts is not None:
            watch_redis(metrics.registry, partial(self.shared_counts.reading, broadcast))


class Machine(NamedTuple):
    """Holds the models on the disk, and the devices and the memory that they are loaded into."""

    store: ModelStore
    footprints: Footprints
    devices: Devices
    page_cache: PageCache

    @classmethod
    async def open(
        cls,
        settings: Settings,
        home: Home,
        db: Database,
        devices: Devices | None,
        stack: AsyncExitStack,
    ) -> "Machine":
        """``devices`` are those of the machine by default."""
        store = ModelStore(
            home.models,
            confine=settings.workers.confine,
            partials_kept=settings.store.partials_kept,
        )
        await asyncio.to_thread(store.listing.keep_in_memory, store.adapter_links.follow)
        footprints = await Footprints.open(db)
        stack.push_async_callback(flush_at_end, footprints.flush)
        if devices is None:
            devices = await asyncio.to_thread(find_devices, settings.devices)
        stack.callback(devices.close)
        page_cache = await asyncio.to_thread(
            open_page_cache,
            settings.devices,
            devices,
            home.models,
            elsewhere=uses_ray(settings),
        )
        stack.callback(page_cache.close)
        return cls(store, footprints, devices, page_cache)


class Storage(NamedTuple):
    """Holds the files that tasks make and clients send, and the space that is kept free."""

    space: DiskSpace
    files: Files
    uploads: Uploads

    @classmethod
    def open(cls, settings: Settings, home: Home, db: Database, health: Health) -> "Storage":
        own = settings.files
        space = DiskSpace(home.root, own.min_free_bytes)
        retention = own.retention or settings.tasks.retention
        # In a shared folder a file may be that of a request which another server answers.
        longest = settings.server.request_timeout if settings.gateways.shared else 0.0
        files = Files(
            db,
            home.files,
            retention=retention,
            max_bytes=own.max_bytes,
            unclaimed=UNCLAIMED_SECONDS + longest,
        )
        uploads = Uploads(
            home.uploads,
            max_bytes=own.max_upload_bytes,
            space=space,
            health=health,
            lost=LOST_SECONDS + longest,
        )
        return cls(space, files, uploads)


def shared_answers_of(
    settings: Settings, home: Home, shared_redis: SharedRedis, guard: Guard
) -> "AnswersInRedis | None":
    """Return where answers are kept for all gateways, if the settings ask for it."""
    if shared_redis.link is None or not (settings.redis.cache and settings.cache.responses):
        return None
    from bitinglip.results.cache.redis_answers import (  # redis: rarely needed
        CACHING,
        AnswersInRedis,
    )

    return AnswersInRedis(
        shared_redis.link,
        home.secret(CACHING),
        ttl=settings.cache.ttl,
        most=settings.cache.max_bytes,
        words=guard.words_digest,
    )


class KeptWork(NamedTuple):
    """Holds what outlives its requests: asynchronous tasks, and responses that are kept."""

    tasks: Tasks
    responses: Responses
    revocation: Revocation

    @classmethod
    async def open(
        cls,
        settings: Settings,
        db: Database,
        storage: Storage,
        tokens: Tokens,
        dispatcher: Dispatcher,
        membership: Membership | None,
        stack: AsyncExitStack,
    ) -> "KeptWork":
        kept, own, space = settings.tasks, settings.openai, storage.space
        responses = Responses(
            db,
            ended,
            retention=own.response_retention,
            max_bytes=own.response_max_bytes,
            space=space,
            owner=owner_of(membership),
        )
        rows = TaskStore(
            db,
            inference_response,
            retention=kept.retention,
            max_bytes=kept.max_bytes,
            space=space,
            owner=owner_of(membership),
        )
        elsewhere = None if membership is None else Elsewhere(rows, membership.tell)
        tasks = Tasks(
            rows,
            dispatcher,
            finish=partial(_finish, storage.files, responses),
            discard_uploads=storage.uploads.discard,
            retention=kept.retention,
            elsewhere=elsewhere,
        )
        if membership is not None:
            membership.on_poll(tasks.poll_others)
            membership.on_rejoin(tasks.drop_lost)
        await tasks.recover()
        stack.push_async_callback(tasks.close)
        revocation = Revocation(partial(_is_granted, tokens), dispatcher, tasks)
        await revocation.check()  # the keys of recovered tasks may have ended
        return cls(tasks, responses, revocation)


async def _finish(files: Files, responses: Responses, event_log: EventLog) -> None:
    """Write what a task leaves behind before its end is told: files, and a response."""
    await files.register(event_log)
    await responses.finish(event_log)


def _is_granted(tokens: Tokens, claim: Claim) -> bool:
    return tokens.grants(claim.credential, KINDS[claim.kind].scope, claim.model)


async def flush_at_end(flush: Callable[[], Awaitable[None]]) -> None:
    """Write what is in memory only, on the way down; a failing disk does not stop that."""
    try:
        await flush()
    except RECOVERABLE as error:
        log.warning("something learned could not be written", reason=str(error))
