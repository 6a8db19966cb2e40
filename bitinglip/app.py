"""The composition root: opens the parts in order, closes them in reverse, decides nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from bitinglip import __version__, api
from bitinglip.access.keys import PEPPER, KeyRing
from bitinglip.access.tickets import Tickets
from bitinglip.api.services import Services
from bitinglip.confinement import confinement_of
from bitinglip.db.database import Database
from bitinglip.home import Home
from bitinglip.results.files import Files
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.operations import Operations
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Devices as DeviceSettings
from bitinglip.settings import Settings
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.metrics import Metrics
from bitinglip.wire.response import inference_response
from model_store.page_cache import PageCache, budget
from model_store.store import ModelStore
from workers.devices import Devices
from workers.devices.host import Host
from workers.folders import WorkFolders
from workers.launcher import SpawnLauncher
from workers.pool import WorkerPool

log = structlog.get_logger(__name__)

_FLUSH_INTERVAL = 30.0

#: Told once the server can do all it is meant to: its services, and the admin key if it is new.
Opened = Callable[[Services, str | None], None]


def build(
    settings: Settings,
    home: Home,
    *,
    on_open: Opened = lambda _services, _key: None,
    on_fatal: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application for a home. ``on_fatal`` is called when a background task has died."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            services, admin_key = await _open(settings, home, stack)
            app.state.services = services
            background = _Background(on_fatal)
            stack.push_async_callback(background.close)
            background.start(services.operations.watch(), "watch workers")
            background.start(services.operations.sample_devices(), "sample devices")
            background.start(services.dispatcher.watch_overload(), "measure overload")
            background.start(_flush(services), "flush what was learned")
            background.start(services.tasks.run_cleanup(), "remove expired tasks")
            clean = services.files.run_cleanup(services.tasks.is_open)
            background.start(clean, "remove expired files")
            background.start(_settle(services, admin_key, on_open), "settle")
            yield

    app = FastAPI(
        title="BitingLip",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    api.mount(app, settings)
    return app


async def _open(
    settings: Settings, home: Home, stack: AsyncExitStack
) -> tuple[Services, str | None]:
    db = await Database.open(home.database)
    stack.push_async_callback(db.close)
    keys = await KeyRing.open(db, home.secret(PEPPER))
    admin_key = await keys.ensure_admin_key(home)
    stack.push_async_callback(keys.flush_last_used)
    metrics = Metrics()
    store = ModelStore(home.models, confine=settings.workers.confine)
    footprints = await Footprints.open(db)
    stack.push_async_callback(footprints.flush)
    devices = await asyncio.to_thread(_devices, settings.devices)
    stack.callback(devices.close)
    facts = ResourceFacts(settings, devices, footprints)
    ram = await asyncio.to_thread(lambda: Host().total_bytes)
    page_cache = PageCache(budget(settings.devices.page_cache_bytes, ram))
    stack.callback(page_cache.close)
    manager = ModelManager(settings, store, facts, metrics, page_cache)
    dispatcher = Dispatcher(settings, manager, metrics)
    folders = WorkFolders(home.work)
    await asyncio.to_thread(folders.sweep)
    pool = WorkerPool(
        SpawnLauncher(folders, confinement_of(settings, home, ram)),
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
    tasks = Tasks(
        db, dispatcher, inference_response, files.keep, retention=settings.tasks.retention
    )
    await tasks.recover()
    stack.push_async_callback(tasks.close)
    metrics.watch(
        in_flight=lambda: dispatcher.in_flight,
        depth=dispatcher.depths,
        workers=operations.states,
        devices=operations.samples,
    )
    services = Services(
        settings=settings,
        home=home,
        store=store,
        keys=keys,
        dispatcher=dispatcher,
        operations=operations,
        footprints=footprints,
        metrics=metrics,
        db=db,
        tasks=tasks,
        tickets=Tickets(),
        files=files,
    )
    return services, admin_key


def _devices(settings: DeviceSettings) -> Devices:
    devices = Devices.find(
        [(each.name, each.memory_bytes) for each in settings.fake], settings.cpu_memory_bytes
    )
    if devices.note:
        log.info(devices.note)
    return devices


async def _settle(services: Services, admin_key: str | None, on_open: Opened) -> None:
    """What may take seconds and must not hold up the first answer."""
    from model_store.demo import make_demo_models, make_fake_models

    demo, store = services.settings.demo, services.store
    if demo == "always" or (demo == "auto" and not store.names()):
        await asyncio.to_thread(make_demo_models, store)
    # A model that the settings call fake needs no files: it only pretends.
    fakes = [name for name, own in services.settings.models.items() if own.engine == "fake"]
    await asyncio.to_thread(make_fake_models, store, fakes)
    on_open(services, admin_key)
    services.operations.open()
    services.tasks.resume()


async def _flush(services: Services) -> None:
    while True:
        await asyncio.sleep(_FLUSH_INTERVAL)
        await services.keys.flush_last_used()
        await services.footprints.flush()


class _Background:
    """Tasks as long as the server; one that fails ends the server, aloud."""

    def __init__(self, on_fatal: Callable[[], None]) -> None:
        self._on_fatal = on_fatal
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("background task died", task=task.get_name(), exc_info=error)
            self._on_fatal()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
