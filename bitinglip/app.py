"""The composition root: opens the parts in order, closes them in reverse, decides nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
from fastapi import FastAPI

from bitinglip import __version__, api
from bitinglip.access.key_age import KeyAge
from bitinglip.access.keys import PEPPER, KeyRing
from bitinglip.access.limits.admission import Admission, now
from bitinglip.access.limits.checkpoint import Checkpoint
from bitinglip.access.limits.logins import FailedLogins
from bitinglip.access.limits.store import MemoryStore
from bitinglip.access.limits.token_rates import TokenRates
from bitinglip.access.links import SIGNATURES, Links
from bitinglip.access.tickets import Tickets
from bitinglip.access.tokens import SIGNING, Tokens
from bitinglip.access.usage.meter import Meter
from bitinglip.access.usage.quotas import Plans
from bitinglip.access.usage.rows import UsageRows
from bitinglip.api.auth import text_caller
from bitinglip.api.services import Services
from bitinglip.audit.chain import SEALING
from bitinglip.audit.entry import Action, Entry
from bitinglip.audit.log import AuditLog
from bitinglip.audit.start import begin
from bitinglip.background import RECOVERABLE, Background
from bitinglip.batches.batches import Batches
from bitinglip.batches.requests import Requests
from bitinglip.bootstrap import Opened, bootstrap
from bitinglip.confinement import spawn_launcher
from bitinglip.db.database import Database
from bitinglip.db.write_behind import WriteBehind
from bitinglip.disk_space import DiskSpace
from bitinglip.guard.guard import Guard
from bitinglip.guard.watch import Watch
from bitinglip.home import Home
from bitinglip.http.capacity import capacity, raise_descriptor_limit
from bitinglip.http.connections import Connections
from bitinglip.periodic import start_periodic
from bitinglip.results.cache.cache import ResponseCache
from bitinglip.results.files import Files
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import Claim
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.operations import Operations
from bitinglip.scheduling.models.recheck import Recheck
from bitinglip.scheduling.models.resume import Resume
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Devices as DeviceSettings
from bitinglip.settings import Settings
from bitinglip.tasks.responses import Responses
from bitinglip.tasks.revocation import Revocation
from bitinglip.tasks.store import TaskStore
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.cache_metrics import CacheMetrics
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.metrics import Metrics
from bitinglip.telemetry.refusals import LimitRefusals
from bitinglip.tls import Certificate
from bitinglip.wire.kinds import KINDS
from bitinglip.wire.response import inference_response
from bitinglip.wire.responses.output import ended
from model_store.file_systems import slow_storage
from model_store.page_cache import PageCache, budget
from model_store.store import ModelStore
from workers.devices import Devices
from workers.devices.host import Host
from workers.devices.probe import probe_cards
from workers.launcher import Launcher
from workers.pool import WorkerPool

log = structlog.get_logger(__name__)


def build(
    settings: Settings,
    home: Home,
    *,
    launcher: Launcher | None = None,
    on_open: Opened = lambda _services, _key: None,
    on_fatal: Callable[[], None] = lambda: None,
    connections: Connections | None = None,
    devices: Devices | None = None,
    certificate: Certificate | None = None,
) -> api.Application:
    """Build the application for a home.

    ``launcher`` starts the workers; by default each is a child process. ``on_fatal`` is called
    when a background task has died. ``connections`` are the books of the server that runs it.
    ``devices`` are those of the machine by default. ``certificate`` is HTTPS's, if it is on.
    """
    if connections is None:
        connections = Connections(capacity(settings.server, raise_descriptor_limit()))
    books = connections

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            own: Launcher | None = launcher
            if own is None:
                own = await asyncio.to_thread(spawn_launcher, settings, home)
            services, admin_key = await _open(settings, home, own, books, devices, stack)
            app.state.services = services
            background = Background(services.health, on_fatal)
            stack.push_async_callback(background.close)
            start_periodic(background, services, certificate)
            start = partial(bootstrap, services, admin_key, on_open)
            background.run(start, "first models", check="model_manager")
            yield

    app = api.Application(
        title="BitingLip",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        root_path_in_servers=False,
    )
    api.mount(app, settings)
    return app


async def _open(
    settings: Settings,
    home: Home,
    launcher: Launcher,
    connections: Connections,
    devices: Devices | None,
    stack: AsyncExitStack,
) -> tuple[Services, str | None]:
    health = Health()
    db = await Database.open(home.database, health)
    stack.push_async_callback(db.close)
    audit = await _open_audit(settings, home, db, stack)
    keys = await KeyRing.open(
        db, home.secret(PEPPER), audit, age=KeyAge(settings.security.key_rotation)
    )
    tokens = await Tokens.open(db, keys, home.secret(SIGNING), audit)
    admin_key = await keys.ensure_admin_key(home)
    stack.push_async_callback(_last, keys.flush_last_used)
    counts = await _Counts.open(db, settings, keys)
    stack.push_async_callback(_last, counts.write_behind.flush)
    metrics = Metrics()
    store = await _open_store(settings, home)
    footprints = await Footprints.open(db)
    stack.push_async_callback(_last, footprints.flush)
    if devices is None:
        devices = await asyncio.to_thread(_devices, settings.devices)
    stack.callback(devices.close)
    facts = ResourceFacts(settings, devices, footprints)
    page_cache = await asyncio.to_thread(_page_cache, settings.devices, devices, home.models)
    stack.callback(page_cache.close)
    manager = ModelManager(settings, store, facts, metrics, page_cache)
    guard = Guard(settings, Watch(metrics.registry, health, settings.guard))
    dispatcher = Dispatcher(settings, manager, metrics, guard, meter=counts.meter)
    stack.callback(dispatcher.close)
    pool = WorkerPool(
        launcher,
        dispatcher.delivery,
        heartbeat_timeout=settings.workers.heartbeat_timeout,
        load_timeout=settings.workers.load_timeout,
        spare=settings.workers.spare,
    )
    # The one cycle, closed late: pool -> dispatcher -> manager -> both of them.
    manager.connect(pool, dispatcher.delivery)
    operations = Operations(settings, store, pool, manager)
    stack.push_async_callback(operations.close)
    files = Files(
        db,
        home.files,
        retention=settings.files.retention or settings.tasks.retention,
        max_bytes=settings.files.max_bytes,
    )
    space = DiskSpace(home.root, settings.files.min_free_bytes)
    uploads = Uploads(
        home.uploads, max_bytes=settings.files.max_upload_bytes, space=space, health=health
    )
    tasks, responses = await _tasks(settings, db, space, dispatcher, files, uploads, stack)
    revocation = await _revocation(tokens, dispatcher, tasks)
    admission = counts.admission(settings, connections, dispatcher)
    batches = await Batches.open(
        db,
        home.batches,
        Requests(
            settings,
            home,
            store,
            guard,
            dispatcher,
            admission,
            responses,
            metrics.fields_ignored,
        ),
        partial(text_caller, tokens, keys),
        settings,
        space,
    )
    stack.push_async_callback(batches.close)
    cache = ResponseCache(
        settings, store, dispatcher, files, uploads, revocation, CacheMetrics(metrics.registry)
    )
    stack.push_async_callback(cache.close)
    metrics.watch(
        in_flight=lambda: dispatcher.in_flight,
        depth=dispatcher.depths,
        workers=operations.states,
        devices=operations.samples,
        degraded=health.problems,
        connections=connections.states,
        refused=lambda: connections.refused,
        tokens=dispatcher.tokens,
    )
    services = Services(
        settings=settings,
        home=home,
        store=store,
        keys=keys,
        tokens=tokens,
        dispatcher=dispatcher,
        operations=operations,
        footprints=footprints,
        metrics=metrics,
        db=db,
        audit=audit,
        tasks=tasks,
        responses=responses,
        batches=batches,
        revocation=revocation,
        tickets=Tickets(),
        links=Links(home.secret(SIGNATURES), settings.files.link_lifetime),
        files=files,
        uploads=uploads,
        resume=Resume(devices, manager, dispatcher.delivery, pool, probe_cards),
        recheck=Recheck(manager, probe_cards),
        health=health,
        admission=admission,
        write_behind=counts.write_behind,
        meter=counts.meter,
        token_rates=counts.token_rates,
        usage=counts.usage,
        logins=FailedLogins(settings.limits.failed_logins_per_minute),
        cache=cache,
        guard=guard,
        refusals=LimitRefusals(metrics.registry),
    )
    return services, admin_key


async def _tasks(
    settings: Settings,
    db: Database,
    space: DiskSpace,
    dispatcher: Dispatcher,
    files: Files,
    uploads: Uploads,
    stack: AsyncExitStack,
) -> tuple[Tasks, Responses]:
    """Make what outlives its requests: asynchronous tasks, and responses that are kept."""
    kept, own = settings.tasks, settings.openai
    responses = Responses(
        db,
        ended,
        retention=own.response_retention,
        max_bytes=own.response_max_bytes,
        space=space,
    )
    rows = TaskStore(
        db,
        inference_response,
        retention=kept.retention,
        max_bytes=kept.max_bytes,
        space=space,
    )
    tasks = Tasks(
        rows,
        dispatcher,
        finish=partial(_finish, files, responses),
        discard_uploads=uploads.discard,
        retention=kept.retention,
    )
    await tasks.recover()
    stack.push_async_callback(tasks.close)
    return tasks, responses


async def _finish(files: Files, responses: Responses, event_log: EventLog) -> None:
    """Write what a task leaves behind before its end is told: files, and a response."""
    await files.register(event_log)
    await responses.finish(event_log)


async def _revocation(tokens: Tokens, dispatcher: Dispatcher, tasks: Tasks) -> Revocation:
    revocation = Revocation(partial(_is_granted, tokens), dispatcher, tasks)
    await revocation.check()  # the keys of recovered tasks may have ended
    return revocation


def _is_granted(tokens: Tokens, claim: Claim) -> bool:
    return tokens.grants(claim.credential, KINDS[claim.kind].scope, claim.model)


async def _open_audit(
    settings: Settings, home: Home, db: Database, stack: AsyncExitStack
) -> AuditLog:
    """Open the audit log, and close it last but for the database."""
    audit = AuditLog(
        db,
        home.secret(SEALING),
        folder=home.audit,
        days=settings.audit.retention,
        max_entries=settings.audit.max_entries,
    )
    await begin(audit, settings)
    stack.push_async_callback(_last, partial(audit.close, Entry(Action.SERVER_STOP)))
    return audit


class _Counts(NamedTuple):
    """Holds the parts that count what keys use, and the one that writes it."""

    cells: MemoryStore
    token_rates: TokenRates
    meter: Meter
    usage: UsageRows
    write_behind: WriteBehind

    @classmethod
    async def open(cls, db: Database, settings: Settings, keys: KeyRing) -> "_Counts":
        """Take over what the last run wrote. Raises DatabaseError."""
        cells = MemoryStore()
        checkpoint = Checkpoint(db, cells)
        await checkpoint.load()
        plans = Plans(settings.limits)
        rates = TokenRates(settings.limits, lambda key_id: keys.terms(key_id)[0], cells, clock=now)
        meter = Meter(lambda key_id: plans.of(*keys.terms(key_id)), rates=rates)
        usage = UsageRows(db, meter, retention=settings.usage.retention)
        await usage.load()
        return cls(cells, rates, meter, usage, WriteBehind(db, checkpoint, usage))

    def admission(
        self, settings: Settings, connections: Connections, dispatcher: Dispatcher
    ) -> Admission:
        return Admission(
            settings.limits,
            per_key=connections.capacity.per_key,
            share=dispatcher.share,
            store=self.cells,
            meter=self.meter,
        )


async def _open_store(settings: Settings, home: Home) -> ModelStore:
    store = ModelStore(home.models, confine=settings.workers.confine)
    await asyncio.to_thread(store.listing.keep_in_memory)
    return store


def _devices(settings: DeviceSettings) -> Devices:
    devices = Devices.find(
        [(each.name, each.memory_bytes) for each in settings.fake],
        settings.cpu_memory_bytes,
        settings.memory_limit,
    )
    if devices.slow_start:
        log.warning(devices.slow_start)
    for name in devices.unknown_limits():
        log.warning("devices.memory_limit names a card that is not there", card=name)
    if devices.note and not devices.missing:  # which is told as a problem
        log.info(devices.note)
    return devices


def _page_cache(settings: DeviceSettings, devices: Devices, models: Path) -> PageCache:
    cache_bytes = settings.page_cache_bytes
    if cache_bytes is None and any(device.unified for device in devices.list()):
        cache_bytes = 0  # files in RAM would take a card's memory
    slow = slow_storage(models)
    if slow is not None:
        log.warning("models load slowly from where they lie", models=str(models), storage=slow)
    size = budget(cache_bytes, Host().total_bytes)
    return PageCache(size, reads_first=slow is not None)


async def _last(flush: Callable[[], Awaitable[None]]) -> None:
    """Write what is in memory only, on the way down; a failing disk does not stop that."""
    try:
        await flush()
    except RECOVERABLE as error:
        log.warning("something learned could not be written", reason=str(error))
