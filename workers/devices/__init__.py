"""The devices that models can run on: the cards, the processor, or devices made up by a setting.

Nothing here imports torch or makes a CUDA context: the gateway holds one of these all its life.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Self

from workers.devices.device import WELL, Condition, Device, DeviceUsage, State
from workers.devices.host import Host
from workers.devices.nvml import Card, Cards, Driver

__all__ = ["CPU", "WELL", "Condition", "Device", "DeviceUsage", "Devices", "Driver", "State"]

CPU = "cpu"
_CPU_PERCENT = 80  #: of RAM is the processor's budget where none is set


class Devices:
    """The devices that were found at the start, and what they do now."""

    def __init__(
        self,
        cards: Cards | None = None,
        host: Host | None = None,
        cpu_memory_bytes: int | None = None,
        fake: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._cards = cards
        self._host = host
        self._list = (
            *(_made_up(number, *each) for number, each in enumerate(fake)),
            *(_card(card) for card in (cards.list if cards else ())),
            *([_processor(host, cpu_memory_bytes)] if host else []),
        )
        self._marks: dict[tuple[str, str], Condition] = {}
        self._marking = threading.Lock()
        self.note = cards.note if cards else None
        if fake:
            self.note = "made-up devices stand in for those of this machine"

    @classmethod
    def find(
        cls, fake: Sequence[tuple[str, int]] = (), cpu_memory_bytes: int | None = None
    ) -> Self:
        """Asks the driver once; (name, memory_bytes) pairs replace what the machine has.

        Never raises: a machine without a driver has its processor, and a note that says so.
        """
        if fake:
            return cls(fake=fake)
        cards = Cards.find(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return cls(cards, Host(), cpu_memory_bytes)

    @property
    def driver(self) -> Driver | None:
        """The NVIDIA driver; None where there is none, or it was not asked."""
        return self._cards.driver if self._cards else None

    def list(self) -> tuple[Device, ...]:
        """Accelerators first, the processor last."""
        return self._list

    def mark(self, device_id: str, state: State, reason: str, *, source: str) -> None:
        """Say that a device is not well. Its state is the worst that any source says of it.

        ``source`` names who says so ("faults", "suspend", ...); it alone can ``clear`` it again.
        ``reason`` is for the operator: what is, and what to do. May be called in any thread.
        """
        with self._marking:
            self._marks[device_id, source] = Condition(state, reason)
            self._apply_marks()

    def clear(self, device_id: str, *, source: str) -> None:
        """Take back what this source said of a device; no harm if it said nothing."""
        with self._marking:
            if self._marks.pop((device_id, source), None) is not None:
                self._apply_marks()

    def _apply_marks(self) -> None:
        conditions: dict[str, Condition] = {}
        for (device_id, _), condition in self._marks.items():
            conditions[device_id] = conditions.get(device_id, WELL).worse(condition)
        self._list = tuple(
            replace(device, condition=conditions.get(device.id, WELL)) for device in self._list
        )

    def read(self, pids: Iterable[int] = ()) -> dict[str, DeviceUsage]:
        """A look at each device by id; one that fails to answer is left out.

        Blocks for some milliseconds a card: call it in a thread. ``pids`` are the processes whose
        resident bytes the processor's reading tells; the driver tells a card's by itself.
        """
        readings = {device.id: DeviceUsage(0, {}) for device in self._list if device.kind == "fake"}
        if self._cards is not None:
            readings |= self._cards.read()
        if self._host is not None:
            readings[CPU] = self._host.read(pids)
        return readings

    def close(self) -> None:
        """Lets go of the driver's library. Cards are left out of every reading after it."""
        if self._cards is not None:
            self._cards.close()


def _card(card: Card) -> Device:
    return Device(card.id, card.name, "cuda", card.memory_bytes, card.memory_bytes)


def _made_up(number: int, name: str, memory_bytes: int) -> Device:
    return Device(f"fake{number}", name, "fake", memory_bytes, memory_bytes)


def _processor(host: Host, budget: int | None) -> Device:
    total = host.total_bytes
    planned = total * _CPU_PERCENT // 100 if budget is None else budget
    return Device(CPU, host.name, "cpu", planned, total)
