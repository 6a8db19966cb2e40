"""The composition root: opens the parts in order, closes them in reverse, decides nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
from fastapi import FastAPI

from bitinglip import __version__, api, tls
from bitinglip.access.keys import PEPPER, KeyRing
from bitinglip.access.limits.admission import Admission
from bitinglip.access.limits.checkpoint import Checkpoint
from bitinglip.access.limits.logins import FailedLogins
from bitinglip.access.limits.store import MemoryStore
from bitinglip.access.tickets import Tickets
from bitinglip.access.tokens import CLEAN_SECONDS as TOKEN_CLEAN_SECONDS
from bitinglip.access.tokens import SIGNING, Tokens
from bitinglip.access.usage.meter import Meter
from bitinglip.access.usage.quotas import Plans
from bitinglip.access.usage.rows import CLEAN_SECONDS as CLEAN_USAGE
from bitinglip.access.usage.rows import UsageRows
from bitinglip.api.services import Services
from bitinglip.audit.chain import SEALING
from bitinglip.audit.entry import Action, Entry
from bitinglip.audit.log import DAY, AuditLog
from bitinglip.audit.start import begin, look_after
from bitinglip.background import RECOVERABLE, Background
from bitinglip.bootstrap import Opened, bootstrap
from bitinglip.confinement import spawn_launcher
from bitinglip.db.database import Database
from bitinglip.db.write_behind import FLUSH_SECONDS, WriteBehind
from bitinglip.disk_space import DiskSpace
from bitinglip.home import Home
from bitinglip.http.capacity import capacity, raise_descriptor_limit
from bitinglip.http.connections import Connections
from bitinglip.results.files import CLEAN_SECONDS, Files
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.operations import Operations
from bitinglip.scheduling.models.recheck import CHECK_SECONDS, Recheck
from bitinglip.scheduling.models.resume import LOOK_SECONDS, Resume
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Devices as DeviceSettings
from bitinglip.settings import Settings
from bitinglip.tasks.revocation import CHECK_SECONDS as REVOCATION_SECONDS
from bitinglip.tasks.revocation import Revocation
from bitinglip.tasks.store import TaskStore
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.metrics import Metrics
from bitinglip.telemetry.refusals import LimitRefusals
from bitinglip.wire.response import inference_response
from model_store.file_systems import slow_storage
from model_store.names import folder_name
from model_store.page_cache import PageCache, budget
from model_store.store import ModelStore
from workers.caches import CLEAN_SECONDS as CACHE_CLEAN_SECONDS
from workers.caches import ModelCaches
from workers.devices import Devices
from workers.devices.host import Host
from workers.devices.probe import probe_cards
from workers.launcher import Launcher
from workers.pool import WorkerPool

log = structlog.get_logger(__name__)

_FLUSH_SECONDS = 5.0  #: between two writes of what is kept in memory
_PROBE_SECONDS = 2.0  #: between two attempts to write to a database that refused
_AUDIT_SECONDS = 1.0  #: between two writes of audit entries that nobody waits for
_TORCH_SECONDS = 300.0  #: between two questions to torch about cards, if there is one
_SAMPLE_SECONDS = 1.0  #: between two samples of the devices
_STORE_SECONDS = 1.0  #: between two looks at the folder of models, which commands may change too


def build(
    settings: Settings,
    home: Home,
    *,
    launcher: Launcher | None = None,
    on_open: Opened = lambda _services, _key: None,
    on_fatal: Callable[[], None] = lambda: None,
    connections: Connections | None = None,
    devices: Devices | None = None,
    certificate: tls.Certificate | None = None,
) -> FastAPI:
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
            _start(background, services)
            if certificate is not None:
                _watch(background, services, certificate)
            start = partial(bootstrap, services, admin_key, on_open)
            background.run(start, "first models", check="model_manager")
            yield

    app = api.Application(
        title="BitingLip",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
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
    audit = AuditLog(
        db,
        home.secret(SEALING),
        inbox=home.audit,
        days=settings.audit.retention,
        max_entries=settings.audit.max_entries,
    )
    await begin(audit, settings)
    stack.push_async_callback(_last, partial(audit.close, Entry(Action.SERVER_STOP)))
    keys = await KeyRing.open(db, home.secret(PEPPER), audit)
    tokens = await Tokens.open(db, keys, home.secret(SIGNING), audit)
    admin_key = await keys.ensure_admin_key(home)
    stack.push_async_callback(_last, keys.flush_last_used)
    counts = await _Counts.open(db, settings, keys)
    stack.push_async_callback(_last, counts.write_behind.flush)
    metrics = Metrics()
    store = ModelStore(home.models, confine=settings.workers.confine)
    await asyncio.to_thread(store.listing.keep_in_memory)
    footprints = await Footprints.open(db)
    stack.push_async_callback(_last, footprints.flush)
    if devices is None:
        devices = await asyncio.to_thread(_devices, settings.devices)
    stack.callback(devices.close)
    facts = ResourceFacts(settings, devices, footprints)
    page_cache = await asyncio.to_thread(_page_cache, settings.devices, devices, home.models)
    stack.callback(page_cache.close)
    manager = ModelManager(settings, store, facts, metrics, page_cache)
    dispatcher = Dispatcher(settings, manager, metrics, meter=counts.meter)
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
    tasks = Tasks(
        TaskStore(
            db,
            inference_response,
            retention=settings.tasks.retention,
            max_bytes=settings.tasks.max_bytes,
            space=space,
        ),
        dispatcher,
        register_files=files.register,
        discard_uploads=uploads.discard,
        retention=settings.tasks.retention,
    )
    await tasks.recover()
    revocation = Revocation(tokens.is_valid, dispatcher, tasks)
    await revocation.check()  # the keys of recovered tasks may have ended
    stack.push_async_callback(tasks.close)
    metrics.watch(
        in_flight=lambda: dispatcher.in_flight,
        depth=dispatcher.depths,
        workers=operations.states,
        devices=operations.samples,
        degraded=health.problems,
        connections=connections.states,
        refused=lambda: connections.refused,
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
        revocation=revocation,
        tickets=Tickets(),
        files=files,
        uploads=uploads,
        resume=Resume(devices, manager, dispatcher.delivery, pool, probe_cards),
        recheck=Recheck(manager, probe_cards),
        health=health,
        admission=Admission(
            settings.limits,
            per_key=connections.capacity.per_key,
            share=dispatcher.share,
            store=counts.cells,
            meter=counts.meter,
        ),
        write_behind=counts.write_behind,
        meter=counts.meter,
        usage=counts.usage,
        logins=FailedLogins(settings.limits.failed_logins_per_minute),
        refusals=LimitRefusals(metrics.registry),
    )
    return services, admin_key


class _Counts(NamedTuple):
    """What is counted of keys, and its owner of writes."""

    cells: MemoryStore
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
        meter = Meter(lambda key_id: plans.of(*keys.terms(key_id)))
        usage = UsageRows(db, meter, retention=settings.usage.retention)
        await usage.load()
        return cls(cells, meter, usage, WriteBehind(db, checkpoint, usage))


def _devices(settings: DeviceSettings) -> Devices:
    devices = Devices.find(
        [(each.name, each.memory_bytes) for each in settings.fake],
        settings.cpu_memory_bytes,
        settings.memory_limit,
    )
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


def _start(background: Background, services: Services) -> None:
    """Start what the server does beside requests."""
    operations, tasks, files = services.operations, services.tasks, services.files

    async def sample() -> None:
        await operations.sample_devices()
        services.health.report("devices", operations.device_problems())

    async def flush() -> None:
        await services.keys.flush_last_used()
        await services.footprints.flush()

    manager, every = "cluster_manager", background.every
    background.run(operations.watch, "watch workers", check=manager)
    background.run(services.dispatcher.watch_overload, "measure overload", check=manager)
    every(_SAMPLE_SECONDS, sample, "sample devices", check=manager)
    every(LOOK_SECONDS, services.resume.look, "cards after a suspension", check=manager)
    every(_TORCH_SECONDS, operations.ask_torch, "ask torch about cards", check=manager)
    every(CHECK_SECONDS, services.recheck.look, "cards after faults", check=manager)
    every(_PROBE_SECONDS, services.db.probe, "probe", check="database")
    every(_FLUSH_SECONDS, flush, "times of use and sizes", check="database")

    async def write() -> None:
        await services.write_behind.flush()
        await services.usage.refresh()

    every(FLUSH_SECONDS, write, "limits and usage of keys", check="database")
    every(CLEAN_USAGE, services.usage.clean, "remove old usage", check="database")
    every(_AUDIT_SECONDS, services.audit.flush, "audit log", check="database")
    every(
        DAY, partial(look_after, services.audit, services.health), "old entries", check="database"
    )
    forget = services.tokens.forget_expired
    every(TOKEN_CLEAN_SECONDS, forget, "revoked tokens that have expired", check="database")
    every(REVOCATION_SECONDS, services.revocation.check, "ended keys", check="task_manager")
    every(tasks.cleanup_interval, tasks.clean, "remove expired tasks", check="task_manager")

    async def clean() -> None:
        await files.clean(tasks.is_open)
        await services.uploads.clean(tasks.is_open)

    every(CLEAN_SECONDS, clean, "remove expired files", check="task_manager")
    _start_upkeep(background, services)


def _start_upkeep(background: Background, services: Services) -> None:
    """Start what keeps up with files that others change."""
    every, manager = background.every, "cluster_manager"

    async def look_at_models() -> None:
        await asyncio.to_thread(services.store.listing.look)

    every(_STORE_SECONDS, look_at_models, "models on the disk", check="model_manager")
    caches = ModelCaches(services.home.caches, services.settings.files.max_cache_bytes)

    def bound_caches() -> None:
        caches.clean({folder_name(name) for name in services.store.names()})

    bound = partial(asyncio.to_thread, bound_caches)
    every(CACHE_CLEAN_SECONDS, bound, "bound compiled code", check=manager)


def _watch(background: Background, services: Services, certificate: tls.Certificate) -> None:
    """Take in a new certificate, and warn of an old one."""
    every, manager = background.every, "cluster_manager"
    look = partial(certificate.look, services.health)
    every(tls.LOOK_SECONDS, look, "files of the TLS certificate", check=manager)
    expiry = partial(tls.warn, services.settings.server)
    every(tls.CHECK_SECONDS, expiry, "watch the TLS certificate", check=manager)


async def _last(flush: Callable[[], Awaitable[None]]) -> None:
    """Write what is in memory only, on the way down; a failing disk does not stop that."""
    try:
        await flush()
    except RECOVERABLE as error:
        log.warning("something learned could not be written", reason=str(error))
