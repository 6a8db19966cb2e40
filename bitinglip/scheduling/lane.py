"""The bounded queue of one model, and what runs on its worker. No clock, no asyncio."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from bitinglip.scheduling.inbox import Inbox
from workers.pool import Worker


@dataclass(slots=True, eq=False)
class Flight:
    """One job between admission and the release of everything it holds."""

    inbox: Inbox
    worker: Worker | None = None
    deaths: int = 0  #: workers that died while they ran it
    abandoned: bool = False  #: nobody reads the inbox any more

    @property
    def id(self) -> str:
        return self.inbox.job.id


@dataclass(slots=True)
class Lane:
    """First come, first served; a job that lost its worker goes to the front again."""

    model: str
    most_waiting: int
    waiting: deque[Flight] = field(default_factory=deque)
    running: dict[str, Flight] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.most_waiting

    def begin(self, slots: int) -> Iterator[Flight]:
        """Move flights from waiting to running while there are slots."""
        while self.waiting and len(self.running) < slots:
            flight = self.waiting.popleft()
            self.running[flight.id] = flight
            yield flight

    def forget(self, flight: Flight) -> None:
        self.running.pop(flight.id, None)
        if flight in self.waiting:
            self.waiting.remove(flight)
