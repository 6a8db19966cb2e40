"""Finds workers on cards whose RAM keeps growing, so that they are replaced before it runs out.

What a worker on a card holds in RAM is the same after its first jobs as after thousands, but for
what libraries lose. A worker on the processor has its model and cache there, which fill up.
"""

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.state import Replica
from workers.devices import CPU
from workers.devices.device import is_processor, processor_of
from workers.worker import Worker

_FIRST_JOBS = 10  #: after which its RAM is what it needs
_TIMES = 2.0  #: that, at which it is replaced
_LEAST = 2_000_000_000  #: bytes that it has grown by, at least


class RamGrowth:
    def __init__(self) -> None:
        self._first: WeakKeyDictionary[Worker, int] = WeakKeyDictionary()

    def replace(self, manager: ModelManager) -> None:
        """Put another worker in the place of one whose RAM keeps growing, while it is idle."""
        held = {
            each.id: size
            for each in manager.replicas()
            if each.worker is not None
            and (size := resident(manager, each.worker, each.devices)) is not None
        }
        for replica in self.outgrown(manager.replicas(), held):
            manager.drain_replica(replica, "its RAM has grown")
            manager.preload(replica.model)

    def outgrown(self, replicas: Iterable[Replica], resident: Mapping[str, int]) -> list[Replica]:
        """List replicas that are to be replaced, all of which are idle.

        resident: the RAM that their processes hold, by replica.
        """
        found = []
        for replica in replicas:
            worker = replica.worker
            if worker is None or replica.state != "ready" or _is_on_processor(replica):
                continue
            held = resident.get(replica.id)
            if held is None or replica.ended_jobs < _FIRST_JOBS:
                continue
            first = self._first.setdefault(worker, held)
            grown = held - _filling(worker)
            if replica.in_flight == 0 and grown > max(_TIMES * first, first + _LEAST):
                found.append(replica)
        return found


def _is_on_processor(replica: Replica) -> bool:
    return any(map(is_processor, replica.devices))


def _filling(worker: Worker) -> int:
    """Return the bytes that a worker fills up and that are bounded: of prefixes in RAM."""
    text = worker.spec.text if worker.spec is not None else None
    return text.prefix_ram_bytes if text is not None else 0


def resident(manager: ModelManager, worker: Worker, devices: Iterable[str]) -> int | None:
    """Return the bytes of RAM that a worker's process holds, as the last look at the machine of its
    devices has it; None if that does not tell."""
    reading = manager.facts.reading(processor_of(next(iter(devices), CPU)))
    return reading.processes.get(worker.pid) if reading is not None else None
