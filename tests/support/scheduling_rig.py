"""Runs scheduling without HTTP: queues, dispatch and model manager over real worker processes."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bitinglip.access.usage.meter import Meter
from bitinglip.scheduling.composition import Scheduling
from bitinglip.scheduling.event_log import Event, EventLog
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.demo import make_fake_models
from model_store.store import ModelStore
from tests.support.jobs import text_job
from tests.support.wait import until
from workers.devices import Devices
from workers.launcher import Launcher, SpawnLauncher
from workers.protocol import TextDone

ECHO = "demo-echo"


class Rig:
    """Builds all parts between HTTP and the workers, for fake models."""

    def __init__(
        self,
        root: Path,
        values: dict[str, Any],
        launcher: Launcher,
        devices: Devices | None = None,
    ) -> None:
        """``devices`` are in place of those of the settings."""
        settings = Settings.model_validate(values)
        self.store = store = ModelStore(root / "models")
        make_fake_models(store, list(settings.models))
        metrics = Metrics()
        fakes = [(each.name, each.memory_bytes) for each in settings.devices.fake]
        limits = settings.devices.memory_limit
        self.devices = devices or Devices.find(fakes, limits=limits)
        self.footprints = Footprints()
        facts = ResourceFacts(settings, self.devices, self.footprints)
        self.meter = Meter()
        parts = Scheduling(settings, store, facts, metrics, launcher, meter=self.meter)
        self.manager, self.dispatcher = parts.manager, parts.dispatcher
        self.pool, self.operations = parts.pool, parts.operations

    def pid(self, worker_id: str = f"{ECHO}/0") -> int:
        return next(view.pid for view in self.operations.workers() if view.id == worker_id)

    def kill(self, worker_id: str = f"{ECHO}/0") -> None:
        os.kill(self.pid(worker_id), signal.SIGKILL)

    def reserved(self) -> int:
        """Return the bytes held on all devices."""
        return sum(each.reserved_bytes for each in self.operations.devices())


def job(prompt: str = "a b c", max_tokens: int = 3, **fields: Any) -> Job:
    return text_job(prompt, max_tokens=max_tokens, **{"model": ECHO, **fields})


def with_rig(
    path: Path,
    test: Callable[[Rig], Awaitable[None]],
    *,
    max_waiting: int = 100,
    entry: str | None = None,
    **fake: object,
) -> None:
    """Run a test on one fake model that is set so."""
    models = {ECHO: {"fake": {"faults": True, **fake}}}
    values = {"queue": {"max_waiting": max_waiting}, "models": models}
    with_settings(path, test, values, entry=entry)


def with_settings(
    path: Path,
    test: Callable[[Rig], Awaitable[None]],
    values: dict[str, Any],
    *,
    facts: bool = True,
    entry: str | None = None,
    launcher: SpawnLauncher | None = None,
    devices: Devices | None = None,
) -> None:
    """Run a test on any settings; when it is over, the books must balance. Without ``survey``
    nothing reads the devices, so what a test says of them stays. ``entry`` plays the workers in
    place of the product's own."""
    workers = {"heartbeat_timeout": 1.5, "max_restarts": 3, "spare": False, "load_timeout": 20}
    values = {**values, "workers": {**workers, **values.get("workers", {})}}

    async def run() -> None:
        rig = Rig(path, values, launcher or SpawnLauncher(*([entry] if entry else [])), devices)
        watch = [asyncio.create_task(rig.operations.watch())]
        if facts:
            watch.append(asyncio.create_task(rig.operations.sample_devices()))
        try:
            async with asyncio.timeout(60):
                await test(rig)
                await idle(rig)
        finally:
            for task in watch:
                task.cancel()
            await rig.operations.close()

    asyncio.run(run())


async def idle(rig: Rig) -> None:
    """Check that nothing is held when nothing runs."""
    await until(lambda: not any(rig.dispatcher.books().values()))


async def answer(rig: Rig, one: Job) -> str:
    with rig.dispatcher.open(one) as event_log:
        final = await event_log.result()
    assert isinstance(final, TextDone)
    return final.text


async def events_of(event_log: EventLog) -> list[Event]:
    return [event async for events in event_log.batches() for event in events]
