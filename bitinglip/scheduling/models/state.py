"""Models and their replicas have this state; only the model manager writes it, and ``resume``
what a suspended machine does to replicas.

The dispatcher books jobs on replicas through ``took``, ``gave_back`` and ``measured`` only.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bitinglip import errors
from bitinglip.scheduling.models.restarts import RestartBudget
from bitinglip.scheduling.placement.ram import NO_RAM, RamNeed
from model_store.manifest import Manifest
from workers import protocol
from workers.codes import Code, LoadCode
from workers.devices.device import is_processor, node_of
from workers.worker import Worker

_SMOOTHING = 0.2
JUMP_SECONDS = 3.0  #: the two clocks below differ by less while the machine runs


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def suspended_seconds() -> float:
    """Return how long the machine was suspended since its boot."""
    return _boottime() - time.monotonic()


#: Where most of a model's files came from in a load: the disk, or what the system keeps in RAM.
LoadedFrom = Literal["storage", "cache"]


@dataclass(eq=False, slots=True)
class Replica:
    """A replica is a worker and its jobs; it holds its memory until its process is gone."""

    model: str
    index: int
    devices: Mapping[str, int]  #: device id -> bytes reserved
    began: float  #: when its load began
    ram: RamNeed = NO_RAM  #: beside its devices
    #: by device: what other programs held when its load began
    other_bytes: Mapping[str, int] = field(default_factory=dict)
    state: str = "loading"  #: loading, ready, draining, stopping or stuck
    worker: Worker | None = None
    task: "asyncio.Task[None] | None" = None  #: its load or its stop
    progress: float = 0.0  #: of the load, or of the copying before it
    copying: protocol.CopyProgress | None = None  #: its files come to its node
    slots: int = 0
    in_flight: int = 0
    ended_jobs: int = 0
    cost: float = 0.0  #: of the jobs that were sent to it and have not ended
    speed: float | None = None  #: cost per second of a job on it
    silent: bool = False  #: its heartbeat is overdue: nothing new goes to it
    held: bool = False  #: its card is probed after a suspension: nothing new goes to it
    suspended_before: float = field(default_factory=suspended_seconds)
    loaded_at: float = 0.0
    used_at: float = 0.0
    answered_at: float | None = None  #: when a job has succeeded on it last
    load_seconds: float = 1.0
    storage_bytes: int = 0  #: that were read from storage in front of its load

    @property
    def id(self) -> str:
        return f"{self.model}/{self.index}"

    @property
    def ram_bytes(self) -> int:
        """Return the RAM that it holds beside its devices, as it is planned."""
        return self.ram.loading if self.state == "loading" else self.ram.lasting

    @property
    def free_slots(self) -> int:
        """Count the further jobs that it takes now."""
        takes = self.state == "ready" and not self.silent and not self.held
        return self.slots - self.in_flight if takes else 0

    @property
    def slept(self) -> bool:
        """Return True if this machine was suspended while it was on a card of it.

        Its end says nothing then, of the request that ran or of the model: what lay in the card's
        memory may be gone. The clocks are asked, so that no worker dies before that is noticed.
        """
        on_card = not any(is_processor(each) or node_of(each) for each in self.devices)
        return on_card and suspended_seconds() - self.suspended_before > JUMP_SECONDS

    @property
    def accelerators(self) -> int:
        """Count the devices that it works on, without the CPU."""
        return sum(not is_processor(each) for each in self.devices)

    @property
    def health(self) -> float:
        return self.speed or 1.0

    def progressed(
        self, fraction: float, copying: protocol.CopyProgress | None, now: float
    ) -> None:
        """Note how its load goes on. It begins once its files are there: what is learned of loads
        is without the copying."""
        if self.copying is not None and copying is None:
            self.began = now
        self.progress, self.copying = fraction, copying

    def took(self, cost: float) -> None:
        self.in_flight += 1
        self.cost += cost

    def gave_back(self, cost: float, now: float) -> None:
        self.in_flight -= 1
        self.ended_jobs += 1
        self.cost = max(0.0, self.cost - cost) if self.in_flight else 0.0
        self.used_at = now

    def measured(self, cost: float, seconds: float) -> None:
        """Learn its speed from a job that has ended."""
        if seconds > 0 and cost > 0:
            speed = cost / seconds
            self.speed = (
                speed if self.speed is None else self.speed + _SMOOTHING * (speed - self.speed)
            )


@dataclass(eq=False, slots=True)
class ModelState:
    """Holds the state of one model: its replicas, and how its last loads ended."""

    manifest: Manifest
    budget: RestartBudget
    replicas: dict[int, Replica] = field(default_factory=dict)
    target: int = 0  #: how many replicas it should have
    asked: float | None = None  #: when an operator asked for it, until it is loaded
    load_seconds: float | None = None  #: as long as its last load took
    #: how long the last loads took: with most of the files read from storage (cold), or not
    load_times: dict[LoadedFrom, float] = field(default_factory=dict)
    loads: int = 0  #: that succeeded
    restarts: int = 0
    cause: str | None = None
    given_up: bool = False  #: it has failed too often; it stays so until a load succeeds
    failed: bool = False  #: its last load did not succeed
    retry_at: float = 0.0  #: it is not loaded again before this moment
    short_of_memory: int = 0  #: loads in a row that ran out of memory
    watchers: list["asyncio.Future[None]"] = field(
        default_factory=list
    )  #: they wait for its next load

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
        """Return the status in the contract's words: available, loading, ready or error."""
        if self.serving:
            return "ready"
        if self.loading:
            return "loading"
        return "error" if self.given_up or self.failed else "available"

    def load_eta(self, now: float, learned: float | None = None) -> float | None:
        """Estimate the seconds until the model is loaded; None if unknown.

        ``learned``: how long its loads took in earlier runs of the server. A load that has not
        begun may have to wait for memory first, which is not in it.
        """
        usual = learned if self.load_seconds is None else self.load_seconds
        left = [] if self.loading or usual is None else [usual]
        for replica in self.loading:
            passed = now - replica.began
            if replica.progress > 0.05:
                left.append(passed / replica.progress * (1 - replica.progress))
            elif usual is not None:
                left.append(max(0.0, usual - passed))
        return round(min(left), 3) if left else None

    def idle_seconds(self, now: float) -> float | None:
        """Return the seconds since it was used; None if it is in use or not loaded."""
        replicas = self.replicas.values()
        if not replicas or any(each.state != "ready" or each.in_flight for each in replicas):
            return None
        return now - max(each.used_at for each in replicas)

    def loaded(self, replica: Replica, worker: Worker, slots: int, now: float) -> None:
        """Note that a replica has become ready."""
        replica.worker, replica.slots = worker, slots
        replica.state, replica.progress = "ready", 1.0
        replica.loaded_at = replica.used_at = now
        replica.load_seconds = self.load_seconds = now - replica.began
        self.load_times[self.loaded_from(replica)] = replica.load_seconds
        self.cause, self.failed, self.asked = None, False, None
        self.given_up = False
        self.short_of_memory = 0
        self.loads += 1

    def loaded_from(self, replica: Replica) -> LoadedFrom:
        """Tell whether a load read most of the files from storage, or found them cached."""
        ready = replica.worker.ready if replica.worker is not None else None
        read = replica.storage_bytes + (ready.storage_bytes if ready is not None else 0)
        return "storage" if 2 * read > self.manifest.weight_bytes > 0 else "cache"

    def load_failed(self, cause: str, now: float, *, hopeless: bool = False) -> None:
        """Pause before the next try, or give the model up: no replica is left or loading.

        ``hopeless``: another try now would fail as this one did.
        """
        self.failed = True
        self.given_up = self.given_up or hopeless
        self._failed(cause, now)

    def lost(self, cause: str, now: float, *, forgiven: int) -> Callable[[], None]:
        """Pause before the next start, or give the model up: a worker has died.

        ``forgiven``: deaths, this one among them, of a request that is not run again. Returns what
        takes it back.
        """
        before = (self.given_up, self.cause, self.retry_at)
        if forgiven:
            self.budget.give_back(forgiven - 1)
            self.retry_at = now
        else:
            self._failed(cause, now)

        def undo() -> None:
            if not forgiven:
                self.budget.give_back(1)
            self.given_up, self.cause, self.retry_at = before

        return undo

    def _failed(self, cause: str, now: float) -> None:
        within = self.budget.spend(now)
        # One that is tried again after a rest has no failures to spend.
        self.given_up = self.given_up or not within
        if self.failed or self.given_up:
            self.cause = cause
        wait = self.budget.rest(now) if self.given_up else self.budget.pause(now)
        self.retry_at = now + wait

    def rests(self, now: float) -> float:
        """Return the seconds until a given-up model is tried again; 0 if it may be used."""
        return max(0.0, self.retry_at - now) if self.given_up and not self.serving else 0.0

    def explain(self, now: float) -> str | None:
        """Say why the model does not serve, and when it is tried again."""
        rest = self.rests(now)
        return f"{self.cause} It is tried again in {rest:.0f} s." if rest else self.cause

    def refusal(self, code: LoadCode, message: str, now: float) -> errors.BitingLipError:
        """Make the error of the requests that wait, with when the model is tried again."""
        rest, details = self.rests(now) or None, {"model": self.name}
        shown: Code
        match code:
            case "DRIVER_STARTED" | "NOT_GRANTED":  # which clients do not know
                shown = "MODEL_LOAD_FAILED"
            case _:
                shown = code
        return errors.from_code(shown, message, param="model", details=details, retry_after=rest)

    def check(self, now: float) -> None:
        """Raise ModelLoadFailed while the model rests after too many failures."""
        if rest := self.rests(now):
            raise errors.ModelLoadFailed(
                f"The model is out of service: {self.explain(now)} Load it to retry at once.",
                param="model",
                details={"model": self.name},
                retry_after=rest,
            )

    def remove(self, replica: Replica) -> None:
        """Drop a replica whose process is gone, unless another has taken its index."""
        if self.replicas.get(replica.index) is replica:
            del self.replicas[replica.index]

    def forget_failures(self) -> None:
        """Let a model that was given up be loaded again at once."""
        self.given_up = self.failed = False
        self.retry_at = 0.0
        self.budget.reset()

    def tell_watchers(self, error: BaseException | None = None) -> None:
        """End all waits for its load, with ``error`` if it has failed."""
        for watcher in self.watchers:
            if watcher.done():
                continue
            if error is None:
                watcher.set_result(None)
            else:
                watcher.set_exception(error)
        self.watchers.clear()

    @property
    def ready(self) -> protocol.Ready | None:
        """Return the report of its first serving replica about the loaded model."""
        for replica in self.serving:
            if replica.worker:
                return replica.worker.ready
        return None
