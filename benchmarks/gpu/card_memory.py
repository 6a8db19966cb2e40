"""Read how much memory is used: of the card by NVML, with no context of its own; else of processes.

A part that looks at memory must not call ``torch.cuda`` itself: its context would be counted.
"""

import os
import time
from collections.abc import Callable

import psutil

from workers.devices.cards import Cards

_POLL = 0.001


class CardMemory:
    """Reads the memory of the first card that this process may use; on a CPU only that of
    processes."""

    def __init__(self, device: str) -> None:
        """Raises RuntimeError where ``device`` is "cuda" and the driver shows no card."""
        self._cards: Cards | None = None
        if device == "cuda":
            self._cards = Cards.find(os.environ.get("CUDA_VISIBLE_DEVICES"))
            if not self._cards.list:
                raise RuntimeError(self._cards.note or "NVML shows no card")

    @property
    def on_card(self) -> bool:
        return self._cards is not None

    @property
    def total(self) -> int:
        """Return bytes of the card, or of the machine's RAM."""
        if self._cards is None:
            return int(psutil.virtual_memory().total)
        return self._cards.list[0].memory_bytes

    def used(self) -> int:
        """Return the bytes in use on the card, by any process; 0 on a CPU."""
        if self._cards is None:
            return 0
        import pynvml

        return int(pynvml.nvmlDeviceGetMemoryInfo(self._cards.list[0].handle).used)

    def of(self, pid: int) -> int | None:
        """Return bytes that a process holds; None where NVML does not tell (containers hide
        numbers)."""
        if self._cards is not None:
            readings = self._cards.read()
            return next(iter(readings.values())).processes.get(pid) if readings else None
        return int(psutil.Process(pid).memory_info().rss)

    def wait(self, enough: Callable[[int], bool], patience: float) -> float | None:
        """Return seconds until ``enough(used)``; None if it did not come to that within
        ``patience``."""
        began = time.perf_counter()
        while not enough(self.used()):
            if time.perf_counter() - began > patience:
                return None
            time.sleep(_POLL)
        return time.perf_counter() - began
