"""Runs the server's own scheduling, unchanged, over simulated workers."""

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from benchmarks.simulator.books import Books
from benchmarks.simulator.outcome import Outcome
from benchmarks.simulator.pool import SimulatedPool
from benchmarks.simulator.scenario import SimulatedStore
from bitinglip.scheduling.dispatch.delivery import Delivery
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.store import ModelStore
from workers.devices import Devices

_LOAD_INTERVAL = 0.5  #: seconds, as in the server
_READ_INTERVAL = 1.0


class _Counted(Metrics):
    def __init__(self, books: Books) -> None:
        super().__init__()
        self._books = books

    def evicted(self, *, model: str) -> None:
        self._books.evictions += 1
        super().evicted(model=model)


class Ours:
    dispatcher: Dispatcher
    pool: SimulatedPool

    def __init__(self, settings: Settings, books: Books, clock: Callable[[], float]) -> None:
        self._books = books
        store = cast("ModelStore", SimulatedStore(settings))
        fakes = [(each.name, each.memory_bytes) for each in settings.devices.fake]
        self._facts = ResourceFacts(settings, Devices.find(fakes), Footprints(), clock)
        metrics = _Counted(books)

        def connect(manager: ModelManager) -> tuple[SimulatedPool, Delivery]:
            self.dispatcher = Dispatcher(settings, manager, metrics, clock=clock)
            self.pool = SimulatedPool(books, self._placed, self.dispatcher.delivery)
            return self.pool, self.dispatcher.delivery

        self._manager = ModelManager(settings, store, self._facts, metrics, connect, clock=clock)
        books.promised = self._promised

    def _placed(self, worker_id: str) -> Mapping[str, int]:
        model, _, index = worker_id.rpartition("/")
        return self._manager.models[model].replicas[int(index)].devices

    def _promised(self) -> Mapping[str, int]:
        ledger = self._manager.ledger()
        return {device.id: ledger.free(device.id) for device in ledger.devices}

    async def answer(self, job: Job) -> Outcome:
        """Raises what the dispatcher refuses with."""
        with self.dispatcher.open(job) as event_log:
            final = await event_log.end()
            return Outcome.of(event_log.queue_time, final)

    async def watch(self) -> None:
        """Do what the server does at even intervals."""
        await asyncio.gather(self._look(), self._survey_devices())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOAD_INTERVAL)
            self.dispatcher.tick(0.0)

    async def _survey_devices(self) -> None:
        manager, facts = self._manager, self._facts
        while True:
            manager.refresh(facts.sample([]), {})
            self._books.check()
            await asyncio.sleep(_READ_INTERVAL)

    def held(self) -> int:
        """Count what the dispatcher's books hold; 0 when nothing runs."""
        return sum(self.dispatcher.books().values())

    async def close(self) -> None:
        await self._manager.close()
