"""Starts what the server does beside requests, again and again."""

import asyncio
from functools import partial

from bitinglip import tls
from bitinglip.access.key_age import CHECK_SECONDS as KEY_AGE_SECONDS
from bitinglip.access.key_age import KeyAge, Rotation
from bitinglip.access.shared.quotas import RAISE_SECONDS
from bitinglip.access.tokens import CLEAN_SECONDS as TOKEN_CLEAN_SECONDS
from bitinglip.access.usage.rows import CLEAN_SECONDS as CLEAN_USAGE
from bitinglip.api.services import Services
from bitinglip.audit.log import DAY
from bitinglip.audit.start import clean_up
from bitinglip.background import Background
from bitinglip.batches.files import CLEAN_SECONDS as CLEAN_BATCHES
from bitinglip.db.write_behind import FLUSH_SECONDS
from bitinglip.downloads.downloads import CLEAN_SECONDS as CLEAN_DOWNLOADS
from bitinglip.guard.guard import RELOAD_SECONDS
from bitinglip.results.cache.cache import EXPIRE_SECONDS
from bitinglip.results.files import CLEAN_SECONDS
from bitinglip.scheduling.models.recheck import CHECK_SECONDS
from bitinglip.scheduling.models.resume import LOOK_SECONDS
from bitinglip.store_care import CLEAN_SECONDS as CLEAN_STORE
from bitinglip.store_care import run_store_care
from bitinglip.tasks.responses import CLEAN_SECONDS as CLEAN_RESPONSES
from bitinglip.tasks.revocation import CHECK_SECONDS as REVOCATION_SECONDS
from model_store.names import folder_name
from workers.caches import CLEAN_SECONDS as CACHE_CLEAN_SECONDS
from workers.caches import ModelCaches
from workers.kept_memory import RELIEVE_SECONDS, KeptMemory

_FLUSH_SECONDS = 5.0  #: between two writes of what is kept in memory
_PROBE_SECONDS = 2.0  #: between two attempts to write to a database that refused
_AUDIT_SECONDS = 1.0  #: between two writes of audit entries that no request waits for
_USES_SECONDS = 60.0  #: between two writes of which LoRAs were used
_TORCH_SECONDS = 300.0  #: between two questions to torch about cards, if there is one
_SAMPLE_SECONDS = 1.0  #: between two samples of the devices
_STORE_SECONDS = 1.0  #: between two looks at the folder of models, which commands may change too


def start_periodic(
    background: Background, services: Services, certificate: tls.Certificate | None
) -> None:
    """Start what the server does beside requests. ``certificate`` is HTTPS's, if it is on."""
    operations, tasks = services.operations, services.tasks

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
    every(LOOK_SECONDS, services.resume.check, "cards after a suspension", check=manager)
    every(_TORCH_SECONDS, operations.ask_torch, "ask torch about cards", check=manager)
    every(CHECK_SECONDS, services.recheck.probe_due, "cards after faults", check=manager)
    every(_USES_SECONDS, operations.record_uses, "uses of LoRAs", check="model_manager")
    every(_PROBE_SECONDS, services.db.probe, "probe", check="database")
    every(_FLUSH_SECONDS, flush, "times of use and sizes", check="database")
    _start_keys(background, services)
    every(tasks.cleanup_interval, tasks.clean, "remove expired tasks", check="task_manager")
    clean_responses = services.responses.clean
    clean_batches = services.batches.clean
    every(CLEAN_BATCHES, clean_batches, "remove expired batches", check="task_manager")
    clean_downloads = services.downloads.clean
    every(CLEAN_DOWNLOADS, clean_downloads, "remove old downloads", check="model_manager")
    every(CLEAN_RESPONSES, clean_responses, "remove expired responses", check="task_manager")
    clean = partial(_clean_files, services)
    every(CLEAN_SECONDS, clean, "remove expired files", check="task_manager")
    if services.cache.enabled:
        every(EXPIRE_SECONDS, services.cache.expire, "remove expired answers", check=manager)
    caches = ModelCaches(services.home.caches, services.settings.files.max_cache_bytes)

    def bound_caches() -> None:
        caches.clean({folder_name(name) for name in services.store.names()})

    bound = partial(asyncio.to_thread, bound_caches)
    every(CACHE_CLEAN_SECONDS, bound, "bound compiled code", check=manager)
    care = partial(run_store_care, services)
    every(CLEAN_STORE, care, "clean up the models", check="model_manager")
    _watch_files(background, services, certificate)


async def _clean_files(services: Services) -> None:
    """Remove files that have expired, and those that no task needs, of this server or another."""
    tasks = services.tasks
    elsewhere = await tasks.open_elsewhere()

    def is_open(task_id: str) -> bool:
        return task_id in elsewhere or tasks.is_open(task_id)

    await services.files.clean(is_open)
    await services.uploads.clean(is_open)


def start_keeping(background: Background, services: Services, kept: KeptMemory) -> None:
    """Start what frees memory that models' workers have left, where others want it."""

    async def relieve() -> None:
        kept.relieve()

    async def forget() -> None:
        kept.keep_only(set(services.store.names()))

    background.every(RELIEVE_SECONDS, relieve, "free unused RAM", check="model_manager")
    background.every(CLEAN_STORE, forget, "free RAM of removed models", check="model_manager")


def _start_keys(background: Background, services: Services) -> None:
    """Start what keeps account of keys, and ends what belongs to ended ones."""
    every = background.every
    if services.membership is not None:
        background.run(services.membership.watch, "watch other servers", check="database")

    async def write() -> None:
        await services.write_behind.flush()
        await services.usage.refresh()

    every(FLUSH_SECONDS, write, "limits and usage of keys", check="database")
    every(CLEAN_USAGE, services.usage.clean, "remove old usage", check="database")
    every(_AUDIT_SECONDS, services.audit.flush, "audit log", check="database")
    every(DAY, partial(clean_up, services.audit, services.health), "old entries", check="database")
    forget = services.tokens.forget_expired
    every(TOKEN_CLEAN_SECONDS, forget, "revoked tokens that have expired", check="database")
    if services.settings.security.key_rotation.max_age is not None:
        age = KeyAge(services.settings.security.key_rotation)
        rotation = Rotation(services.keys, age, services.home)
        every(KEY_AGE_SECONDS, rotation.check, "age of keys", check="database")
    if (shared_counts := services.shared_counts) is not None:
        renew, seconds = shared_counts.limits.renew, shared_counts.renew_seconds
        every(seconds, renew, "places of this gateway", check="redis")
        compare = shared_counts.quotas.raise_charged
        every(RAISE_SECONDS, compare, "quotas of all gateways", check="database")
    every(REVOCATION_SECONDS, services.revocation.check, "ended keys", check="task_manager")


def _watch_files(
    background: Background, services: Services, certificate: tls.Certificate | None
) -> None:
    """Look at files that others may change while the server runs."""
    every, settings = background.every, services.settings
    look = partial(asyncio.to_thread, services.store.listing.refresh)
    every(_STORE_SECONDS, look, "models on the disk", check="model_manager")
    if settings.guard.words_file is not None:
        read = partial(services.guard.reload, services.cache.clear)
        every(RELOAD_SECONDS, read, "read the list of words", check="guard")
    if certificate is not None:
        renew = partial(certificate.reload, services.health)
        every(tls.LOOK_SECONDS, renew, "files of the TLS certificate", check="cluster_manager")
        expiry = partial(tls.warn, settings.server)
        every(tls.CHECK_SECONDS, expiry, "watch the TLS certificate", check="cluster_manager")
