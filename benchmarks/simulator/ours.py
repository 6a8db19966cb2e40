"""The server's own scheduling, unchanged, over simulated workers."""

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from benchmarks.simulator.books import Books
from benchmarks.simulator.outcome import Outcome
from benchmarks.simulator.pool import SimulatedPool
from benchmarks.simulator.scenario import SimulatedStore
from bitinglip.scheduling.dispatch import Dispatcher
from bitinglip.scheduling.footprints import Footprints
from bitinglip.scheduling.job import TextJob
from bitinglip.scheduling.residency import Residency
from bitinglip.scheduling.survey import Survey
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
    def __init__(self, settings: Settings, books: Books, clock: Callable[[], float]) -> None:
        self._books = books
        self.pool = SimulatedPool(books, self._placed)
        store = cast("ModelStore", SimulatedStore(settings))
        fakes = [(each.name, each.memory_bytes) for each in settings.devices.fake]
        self._survey = Survey(settings, Devices.find(fakes), Footprints(), clock)
        metrics = _Counted(books)
        self._residency = Residency(settings, store, self.pool, self._survey, metrics, clock=clock)
        self.dispatcher = Dispatcher(settings, self._residency, metrics, clock=clock)
        self.pool.attach(self.dispatcher.delivery)
        books.promised = self._promised

    def _placed(self, worker_id: str) -> Mapping[str, int]:
        model, _, index = worker_id.rpartition("/")
        return self._residency.models[model].replicas[int(index)].devices

    def _promised(self) -> Mapping[str, int]:
        ledger = self._residency.ledger()
        return {device.id: ledger.free(device.id) for device in ledger.devices}

    async def answer(self, job: TextJob) -> Outcome:
        """Raises what the dispatcher refuses with."""
        with self.dispatcher.open(job) as inbox:
            final = await inbox.end()
            return Outcome.of(inbox.queue_time, final)

    async def watch(self) -> None:
        """What the server does at even intervals."""
        await asyncio.gather(self._look(), self._survey_devices())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOAD_INTERVAL)
            self.dispatcher.look(0.0)

    async def _survey_devices(self) -> None:
        residency, survey = self._residency, self._survey
        while True:
            survey.note(survey.read([]), residency.replicas(), {})
            residency.look(_READ_INTERVAL)
            self._books.check()
            await asyncio.sleep(_READ_INTERVAL)

    def held(self) -> int:
        """What the dispatcher's books hold; 0 when nothing runs."""
        return sum(self.dispatcher.books().values())

    async def close(self) -> None:
        await self._residency.close()
