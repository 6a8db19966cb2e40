"""One replica of a model: the worker that runs it, the memory it holds, the work it has."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from bitinglip.scheduling.models.restarts import RestartBudget
from model_store.manifest import Manifest
from workers import protocol
from workers.pool import Worker

_SMOOTHING = 0.2


@dataclass(eq=False, slots=True)
class Replica:
    """Loading, ready, draining or stopping; it holds its memory until its process is gone."""

    model: str
    index: int
    devices: Mapping[str, int]  #: device id -> bytes reserved
    began: float  #: when its load began
    state: str = "loading"
    worker: Worker | None = None
    task: "asyncio.Task[None] | None" = None  #: the load
    progress: float = 0.0  #: of the load
    slots: int = 0
    in_flight: int = 0
    work: float = 0.0  #: sent to it and not ended, in the jobs' own units
    speed: float | None = None  #: work per second of a job on it
    silent: bool = False  #: its heartbeat is overdue: nothing new goes to it
    loaded_at: float = 0.0
    used_at: float = 0.0
    load_seconds: float = 1.0

    @property
    def id(self) -> str:
        return f"{self.model}/{self.index}"

    @property
    def free_slots(self) -> int:
        """How many more jobs it takes now."""
        return self.slots - self.in_flight if self.state == "ready" and not self.silent else 0

    @property
    def health(self) -> float:
        return self.speed or 1.0

    def took(self, work: float) -> None:
        self.in_flight += 1
        self.work += work

    def gave_back(self, work: float, now: float) -> None:
        self.in_flight -= 1
        self.work = max(0.0, self.work - work) if self.in_flight else 0.0
        self.used_at = now

    def measured(self, work: float, seconds: float) -> None:
        """A job of so much work took it so long."""
        if seconds > 0 and work > 0:
            speed = work / seconds
            self.speed = (
                speed if self.speed is None else self.speed + _SMOOTHING * (speed - self.speed)
            )


@dataclass(eq=False, slots=True)
class ModelState:
    """One model's state: its replicas, and what it did when it was last tried."""

    manifest: Manifest
    budget: RestartBudget
    replicas: dict[int, Replica] = field(default_factory=dict)
    target: int = 0  #: how many replicas it should have, though nobody may wait for it now
    asked: float | None = None  #: since when an operator waits for it
    load_seconds: float | None = None  #: as long as its last load took
    loads: int = 0  #: that succeeded
    restarts: int = 0
    cause: str | None = None
    given_up: bool = False
    failed: bool = False  #: its last load did not succeed
    retry_at: float = 0.0  #: not before this is it loaded again
    short_of_memory: int = 0  #: loads in a row that ran out of memory
    watchers: list["asyncio.Future[None]"] = field(default_factory=list)  #: of its next load

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def serving(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.state == "ready"]

    @property
    def loading(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.state == "loading"]

    @property
    def status(self) -> str:
        """The contract's word: available, loading, ready or error."""
        if self.serving:
            return "ready"
        if self.loading:
            return "loading"
        return "error" if self.given_up or self.failed else "available"

    @property
    def ready(self) -> protocol.Ready | None:
        """What its first serving replica found out about it."""
        for replica in self.serving:
            if replica.worker:
                return replica.worker.ready
        return None
