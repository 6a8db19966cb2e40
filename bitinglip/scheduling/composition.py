"""Builds the parts of scheduling together, because some of them call each other back."""

from bitinglip.access.shared.quotas import SharedQuotas
from bitinglip.access.usage.meter import Meter
from bitinglip.guard.guard import Guard
from bitinglip.scheduling.dispatch.delivery import Delivery
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher, OnTraced
from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.operations import Operations
from bitinglip.settings import Settings
from bitinglip.telemetry.metrics import Metrics
from model_store.page_cache import PageCache
from model_store.store import ModelStore
from workers.launcher import Launcher
from workers.pool import WorkerPool


class Scheduling:
    """Holds the model manager, the dispatcher, the pool of workers and the operators' side."""

    dispatcher: Dispatcher
    pool: WorkerPool

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        facts: ResourceFacts,
        metrics: Metrics,
        launcher: Launcher,
        *,
        guard: Guard | None = None,
        meter: Meter | None = None,
        shared: SharedQuotas | None = None,
        on_traced: OnTraced = lambda _event_log, _load: None,
        page_cache: PageCache | None = None,
    ) -> None:
        def connect(manager: ModelManager) -> tuple[WorkerPool, Delivery]:
            self.dispatcher = Dispatcher(
                settings, manager, metrics, guard, meter=meter, shared=shared, on_traced=on_traced
            )
            self.pool = WorkerPool(
                launcher,
                self.dispatcher.delivery,
                heartbeat_timeout=settings.workers.heartbeat_timeout,
                load_timeout=settings.workers.load_timeout,
                spare=settings.workers.spare and settings.workers.launcher == "local",
            )
            return self.pool, self.dispatcher.delivery

        self.manager = ModelManager(settings, store, facts, metrics, connect, page_cache)
        self.operations = Operations(settings, store, self.pool, self.manager)
