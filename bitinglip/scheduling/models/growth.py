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
        for replica in self.outgrown(manager.replicas(), resident(manager)):
            manager.drain_replica(replica, "its RAM has grown")
            manager.preload(replica.model)

    def outgrown(self, replicas: Iterable[Replica], resident: Mapping[int, int]) -> list[Replica]:
        """List replicas that are to be replaced, all of which are idle.

        resident: the RAM that processes hold, by their ids.
        """
        found = []
        for replica in replicas:
            worker = replica.worker
            if worker is None or replica.state != "ready" or _is_on_processor(replica):
                continue
            held = resident.get(worker.pid)
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


def resident(manager: ModelManager) -> Mapping[int, int]:
    """Map our processes to the bytes of RAM that they hold, as the last look has it.

    Workers on two nodes of a cluster may have the same number: then it is the larger one's.
    """
    hosts = {processor_of(device) for each in manager.replicas() for device in each.devices} | {CPU}
    found: dict[int, int] = {}
    for reading in map(manager.facts.reading, hosts):
        for pid, size in reading.processes.items() if reading is not None else ():
            found[pid] = max(size, found.get(pid, 0))
    return found
