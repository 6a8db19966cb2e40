"""The composition root: opens the parts in order, closes them in reverse, decides nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

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
from bitinglip.api.services import Services
from bitinglip.background import RECOVERABLE, Background
from bitinglip.bootstrap import Opened, bootstrap
from bitinglip.confinement import spawn_launcher
from bitinglip.db.database import Database
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
from bitinglip.wire.response import inference_response
from model_store.file_systems import slow_storage
from model_store.page_cache import PageCache, budget
from model_store.store import ModelStore
from workers.devices import Devices
from workers.devices.host import Host
from workers.devices.probe import probe_cards
from workers.launcher import Launcher
from workers.pool import WorkerPool

log = structlog.get_logger(__name__)

_FLUSH_SECONDS = 5.0  #: between two writes of what is kept in memory
_PROBE_SECONDS = 2.0  #: between two attempts to write to a database that refused
_CHECKPOINT_SECONDS = 1.0  #: between two writes of what keys have taken of their limits
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
) -> FastAPI:
    """Build the application for a home.

    ``launcher`` starts the workers; by default each is a child process. ``on_fatal`` is called
    when a background task has died. ``connections`` are the books of the server that runs it.
    ``devices`` are those of the machine by default.
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
    keys = await KeyRing.open(db, home.secret(PEPPER))
    tokens = await Tokens.open(db, keys, home.secret(SIGNING))
    admin_key = await keys.ensure_admin_key(home)
    stack.push_async_callback(_last, keys.flush_last_used)
    counters = MemoryStore()
    checkpoint = Checkpoint(db, counters)
    await checkpoint.load()
    stack.push_async_callback(_last, checkpoint.flush)
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
    dispatcher = Dispatcher(settings, manager, metrics)
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
        tasks=tasks,
        revocation=revocation,
        tickets=Tickets(),
        files=files,
        uploads=uploads,
        resume=Resume(devices, manager, dispatcher.delivery, pool, probe_cards),
        health=health,
        admission=Admission(
            settings.limits,
            per_key=connections.capacity.per_key,
            share=dispatcher.share,
            store=counters,
        ),
        checkpoint=checkpoint,
        logins=FailedLogins(settings.limits.failed_logins_per_minute),
    )
    return services, admin_key


def _devices(settings: DeviceSettings) -> Devices:
    devices = Devices.find(
        [(each.name, each.memory_bytes) for each in settings.fake], settings.cpu_memory_bytes
    )
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
    every(_PROBE_SECONDS, services.db.probe, "probe", check="database")
    every(_FLUSH_SECONDS, flush, "times of use and sizes", check="database")
    every(_CHECKPOINT_SECONDS, services.checkpoint.flush, "limits of keys", check="database")
    forget = services.tokens.forget_expired
    every(TOKEN_CLEAN_SECONDS, forget, "revoked tokens that have expired", check="database")
    every(REVOCATION_SECONDS, services.revocation.check, "ended keys", check="task_manager")
    every(tasks.cleanup_interval, tasks.clean, "remove expired tasks", check="task_manager")

    async def look_at_models() -> None:
        await asyncio.to_thread(services.store.listing.look)

    every(_STORE_SECONDS, look_at_models, "models on the disk", check="model_manager")

    async def clean() -> None:
        await files.clean(tasks.is_open)
        await services.uploads.clean(tasks.is_open)

    every(CLEAN_SECONDS, clean, "remove expired files", check="task_manager")
    if services.settings.server.tls_cert is not None:
        expiry = partial(tls.warn, services.settings.server)
        every(tls.CHECK_SECONDS, expiry, "watch the TLS certificate", check=manager)


async def _last(flush: Callable[[], Awaitable[None]]) -> None:
    """Write what is in memory only, on the way down; a failing disk does not stop that."""
    try:
        await flush()
    except RECOVERABLE as error:
        log.warning("something learned could not be written", reason=str(error))
