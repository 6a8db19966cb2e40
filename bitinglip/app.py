"""Composes the server: opens its parts in order, and closes them in reverse."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fastapi import FastAPI

from bitinglip import __version__, api
from bitinglip.access.limits.admission import Admission
from bitinglip.access.limits.logins import FailedLogins
from bitinglip.access.links import SIGNATURES, Links
from bitinglip.api.auth import text_caller
from bitinglip.api.services import Services
from bitinglip.background import Background
from bitinglip.batches.batches import Batches
from bitinglip.batches.requests import Requests
from bitinglip.bootstrap import Opened, bootstrap
from bitinglip.cluster import check_cluster, open_cluster, uses_ray
from bitinglip.confinement import spawn_launcher
from bitinglip.db.database import Database
from bitinglip.downloads.downloads import Downloads
from bitinglip.downloads.hub import HubAccess
from bitinglip.gateways.membership import Membership
from bitinglip.guard.guard import Guard
from bitinglip.guard.watch import Watch
from bitinglip.home import Home
from bitinglip.http.capacity import capacity, raise_descriptor_limit
from bitinglip.http.connections import Connections
from bitinglip.parts import (
    Access,
    Counts,
    KeptWork,
    Machine,
    Storage,
    flush_at_end,
    owner_of,
    share,
    shared_answers_of,
    tickets_of,
)
from bitinglip.periodic import start_keeping, start_periodic
from bitinglip.redis.opening import SharedRedis, check_redis
from bitinglip.results.cache.cache import ResponseCache
from bitinglip.results.cache.clearing import Clearing
from bitinglip.results.message_pictures import MessagePictures
from bitinglip.scheduling.composition import Scheduling
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.operations import Operations
from bitinglip.scheduling.models.recheck import Recheck
from bitinglip.scheduling.models.resume import Resume
from bitinglip.scheduling.placement.fit_note import fit_note
from bitinglip.settings import Settings
from bitinglip.telemetry.cache_metrics import CacheMetrics
from bitinglip.telemetry.download_metrics import DownloadMetrics
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.metrics import Metrics
from bitinglip.telemetry.refusals import LimitRefusals
from bitinglip.telemetry.span_counts import SpanCounts
from bitinglip.tls import Certificate
from bitinglip.tracing.opening import check_tracing, open_tracer
from workers.devices import Devices
from workers.devices.probe import probe_cards
from workers.launcher import Launcher, kept_by
from workers.nodes.cluster import Agents, Cluster

if TYPE_CHECKING:
    from bitinglip.tracing.tracer import Tracer
    from bitinglip.upstreams.launcher import UpstreamLauncher


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
    hub_token: str | None = None,
    agents: Agents | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> api.Application:
    """Build the application for a home.

    ``launcher`` starts the workers; by default each is a child process. ``on_fatal`` is called
    when a background task has died. ``connections`` are the books of the server that runs it.
    ``devices`` are those of the machine by default. ``certificate`` is HTTPS's, if it is on.
    ``hub_token`` is what the environment held for the hub. ``agents`` start workers on other
    machines in place of Ray's; ``is_stopping`` says whether a start that waits for them is to end.
    """
    check_tracing(settings)
    check_cluster(settings)
    check_redis(settings.redis)
    if connections is None:
        connections = Connections(capacity(settings.server, raise_descriptor_limit()))
    books = connections

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            own: Launcher | None = launcher
            cluster: Cluster | None = None
            if own is None and uses_ray(settings):
                own = cluster = await open_cluster(settings, home, agents, is_stopping)
                stack.push_async_callback(cluster.close)
            elif own is None:
                own = await asyncio.to_thread(spawn_launcher, settings, home)
            if (upstreams := _upstreams(own, settings, stack)) is not None:
                own = upstreams
            hub = HubAccess(settings, home.models, hub_token)
            machines = cluster.devices if cluster else devices
            started = _Started(own, cluster, upstreams, books, machines)
            services, admin_key = await _open(settings, home, started, hub, stack)
            app.state.services = services
            background = Background(services.health, on_fatal)
            stack.push_async_callback(background.close)
            start_periodic(background, services, certificate)
            if (kept := kept_by(own)) is not None:
                start_keeping(background, services, kept)
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


def _upstreams(
    own: Launcher, settings: Settings, stack: AsyncExitStack
) -> "UpstreamLauncher | None":
    """Return what starts stand-ins for other servers, if a model's settings name some."""
    if not any(model.upstream.url for model in settings.models.values()):
        return None
    from bitinglip.upstreams.launcher import UpstreamLauncher  # aiohttp: rarely needed

    upstreams = UpstreamLauncher(own, settings.models)
    stack.push_async_callback(upstreams.close)
    return upstreams


class _Started(NamedTuple):
    """Holds what the other parts stand on."""

    launcher: Launcher
    cluster: Cluster | None  #: if workers run on other machines
    upstreams: "UpstreamLauncher | None"  #: if other servers answer for models
    connections: Connections
    devices: Devices | None  #: None: the machine's


async def _open(
    settings: Settings,
    home: Home,
    started: _Started,
    hub: HubAccess,
    stack: AsyncExitStack,
) -> tuple[Services, str | None]:
    """Open all parts; return them, and the admin key if this start has made it."""
    health, metrics = Health(), Metrics()
    db = await Database.open(home.database, health, settings.database)
    stack.push_async_callback(db.close)
    membership, shared_redis = await _join(settings, home, db, health, stack)
    access = await Access.open(settings, home, db, membership, stack)
    counts = await Counts.open(settings, db, access.keys, shared_redis.link, stack)
    machine = await Machine.open(settings, home, db, started.devices, stack)
    if (kept := kept_by(started.launcher)) is not None:
        machine.devices.discount(kept.unused_bytes)
        stack.callback(kept.close)
    guard = Guard(settings, Watch(metrics.registry, health, settings.guard))
    tracer = open_tracer(settings, SpanCounts(metrics.registry))
    if tracer is not None:
        stack.push_async_callback(asyncio.to_thread, tracer.stop)
    scheduling = _schedule(
        settings, machine, metrics, started.launcher, guard, counts, tracer, stack
    )
    dispatcher = scheduling.dispatcher
    storage = Storage.open(settings, home, db, health)
    work = await KeptWork.open(settings, db, storage, access.tokens, dispatcher, membership, stack)
    admission = counts.admission(settings, started.connections, dispatcher)
    pictures = MessagePictures(settings.limits.pictures, storage.uploads, dispatcher)
    requests = Requests(
        settings,
        home,
        machine.store,
        guard,
        dispatcher,
        admission,
        work.responses,
        pictures,
        metrics.fields_ignored,
    )
    caller_of = partial(text_caller, access.tokens, access.keys)
    batches = await Batches.open(
        db, home.batches, requests, caller_of, settings, storage.space, membership
    )
    stack.push_async_callback(batches.close)
    cache_metrics = CacheMetrics(metrics.registry)
    cache = ResponseCache(
        settings,
        machine.store,
        dispatcher,
        storage.files,
        storage.uploads,
        work.revocation,
        cache_metrics,
        clearing=Clearing(db, membership, shared_redis.broadcast),
        shared=shared_answers_of(settings, home, shared_redis, guard),
    )
    stack.push_async_callback(cache.close)
    downloads = await Downloads.open(
        db,
        machine.store,
        hub,
        settings,
        access.audit,
        DownloadMetrics(metrics.registry),
        partial(_arrived, cache, scheduling.operations),
        lambda expected: fit_note(scheduling.operations.fit(expected)),
        owner_of(membership),
    )
    stack.push_async_callback(flush_at_end, downloads.close)
    _watch(metrics, scheduling, health, started)
    counts.watch(metrics, shared_redis.broadcast)
    base = _Base(settings, home, db, health, metrics, tracer, started, membership, shared_redis)
    requested = _Requested(admission, batches, downloads, cache, guard, pictures)
    services = _services(base, access, counts, machine, scheduling, storage, work, requested)
    return services, access.admin_key


async def _join(
    settings: Settings, home: Home, db: Database, health: Health, stack: AsyncExitStack
) -> tuple[Membership | None, SharedRedis]:
    """Take this server's place among those that share its database, and what they share beside."""
    membership = await share(settings, home, db, health, stack)
    shared_redis = await SharedRedis.open(settings.redis, health, stack)
    if membership is not None:
        membership.connect(shared_redis.broadcast)
    return membership, shared_redis


def _arrived(cache: ResponseCache, operations: Operations, name: str) -> None:
    """Have a model used as it is now: its old answers are forgotten, and it may be preloaded."""
    cache.clear(name.__eq__)
    operations.arrived(name)


class _Base(NamedTuple):
    """Holds what all parts are opened with."""

    settings: Settings
    home: Home
    db: Database
    health: Health
    metrics: Metrics
    tracer: "Tracer | None"
    started: _Started
    membership: Membership | None
    shared_redis: SharedRedis


class _Requested(NamedTuple):
    """Holds the parts that stand between requests and the scheduling."""

    admission: Admission
    batches: Batches
    downloads: Downloads
    cache: ResponseCache
    guard: Guard
    pictures: MessagePictures


def _services(
    base: _Base,
    access: Access,
    counts: Counts,
    machine: Machine,
    scheduling: Scheduling,
    storage: Storage,
    work: KeptWork,
    requested: _Requested,
) -> Services:
    """Give the parts their names for the handlers."""
    manager, delivery = scheduling.manager, scheduling.dispatcher.delivery
    cluster = base.started.cluster
    # A suspension is noticed of this machine only: on others, their cards are not in question.
    probe, kind = (cluster.probe, "") if cluster else (probe_cards, "cuda")
    return Services(
        settings=base.settings,
        home=base.home,
        store=machine.store,
        keys=access.keys,
        tokens=access.tokens,
        dispatcher=scheduling.dispatcher,
        operations=scheduling.operations,
        footprints=machine.footprints,
        metrics=base.metrics,
        db=base.db,
        audit=access.audit,
        tasks=work.tasks,
        responses=work.responses,
        batches=requested.batches,
        downloads=requested.downloads,
        revocation=work.revocation,
        tickets=tickets_of(base.membership, base.db, base.home),
        links=Links(base.home.secret(SIGNATURES), base.settings.files.link_lifetime),
        files=storage.files,
        uploads=storage.uploads,
        pictures=requested.pictures,
        resume=Resume(machine.devices, manager, delivery, scheduling.pool, probe, kind=kind),
        recheck=Recheck(manager, probe),
        cluster=cluster,
        upstreams=base.started.upstreams,
        health=base.health,
        tracer=base.tracer,
        membership=base.membership,
        shared_redis=base.shared_redis,
        admission=requested.admission,
        write_behind=counts.write_behind,
        meter=counts.meter,
        token_rates=counts.token_rates,
        usage=counts.usage,
        logins=FailedLogins(base.settings.limits.failed_logins_per_minute, counts.shared_counts),
        shared_counts=counts.shared_counts,
        cache=requested.cache,
        guard=requested.guard,
        refusals=LimitRefusals(base.metrics.registry),
    )


def _schedule(
    settings: Settings,
    machine: Machine,
    metrics: Metrics,
    launcher: Launcher,
    guard: Guard,
    counts: Counts,
    tracer: "Tracer | None",
    stack: AsyncExitStack,
) -> Scheduling:
    """Build the scheduling; once its workers have stopped, what they were doing is settled."""
    facts = ResourceFacts(settings, machine.devices, machine.footprints)
    scheduling = Scheduling(
        settings,
        machine.store,
        facts,
        metrics,
        launcher,
        guard=guard,
        meter=counts.meter,
        shared=None if counts.shared_counts is None else counts.shared_counts.quotas,
        **({} if tracer is None else {"on_traced": tracer.job_ended}),
        page_cache=machine.page_cache,
    )
    stack.callback(scheduling.dispatcher.close)
    stack.push_async_callback(scheduling.operations.close)
    return scheduling


def _watch(metrics: Metrics, scheduling: Scheduling, health: Health, started: _Started) -> None:
    """Let the metrics read their gauges at each scrape."""
    connections, cluster = started.connections, started.cluster
    dispatcher, operations = scheduling.dispatcher, scheduling.operations
    metrics.watch(
        in_flight=lambda: dispatcher.in_flight,
        depth=dispatcher.depths,
        workers=operations.states,
        devices=operations.samples,
        degraded=health.problems,
        connections=connections.states,
        refused=lambda: connections.refused,
        tokens=dispatcher.tokens,
        copies=cluster.copies if cluster is not None else dict,
    )
