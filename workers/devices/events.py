"""Collects what cards report by themselves (Xid), by NVML's sets of events.

No call waits for an event: a set keeps those that came between two looks.
"""

from collections.abc import Iterable
from typing import Any

_WAIT_MS = 1  #: the least that every driver takes
_MOST = 64  #: reports of one look; a card in trouble may not hold it up


class Events:
    """Takes the reports of some cards, from ``watch`` to ``close``. Its calls may block like
    NVML's."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._set: Any = None
        self.unwatched: frozenset[str] = frozenset()  #: UUIDs of cards that report nothing

    def watch(self, cards: Iterable[tuple[str, Any]]) -> None:
        """Collect from now on what these cards report: (UUID, handle) pairs.

        Drivers under WSL, MIG instances and some cards have no such events: those are left out.
        """
        nvml, unwatched = self._nvml, []
        found = dict(cards)
        try:
            self._set = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            self._set, self.unwatched = None, frozenset(found)
            return
        for pin, handle in found.items():
            try:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)
            except nvml.NVMLError:
                unwatched.append(pin)
        self.unwatched = frozenset(unwatched)

    def take(self) -> list[tuple[str, int]]:
        """Return the (UUID, Xid) pairs that were reported since the last call."""
        nvml, taken = self._nvml, list[tuple[str, int]]()
        while self._set is not None and len(taken) < _MOST:
            try:
                event = nvml.nvmlEventSetWait_v2(self._set, _WAIT_MS)
                if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                    taken.append((str(nvml.nvmlDeviceGetUUID(event.device)), int(event.eventData)))
            except nvml.NVMLError:  # none is there, or the card is lost
                break
        return taken

    def close(self) -> None:
        """Let go of the set; to be called before the library is shut down."""
        if self._set is not None:
            opened, self._set = self._set, None
            try:
                self._nvml.nvmlEventSetFree(opened)
            except self._nvml.NVMLError:
                return
