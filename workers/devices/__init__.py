"""Finds the devices that models can run on: cards, the processor, or devices made up by a setting.

Nothing here imports torch or makes a CUDA context: the gateway holds one of these all its life.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Self

from workers.devices.cards import Cards
from workers.devices.device import CPU, WELL, Condition, Device, DeviceUsage, State
from workers.devices.host import Host
from workers.devices.nvml import Card, Driver
from workers.devices.surroundings import Surroundings
from workers.devices.torch_build import torch_build
from workers.devices.torch_report import AskTorch, ask_torch
from workers.devices.xid import Report

__all__ = [
    "CPU",
    "WELL",
    "Condition",
    "Device",
    "DeviceUsage",
    "Devices",
    "Driver",
    "Report",
    "State",
]

_CPU_PERCENT = 80  #: of RAM is the processor's budget where none is set
#: one such part of a memory that card and processor share stays free: the system lives there
_UNIFIED_PART = 16
#: of a card under Windows, which lets a full one spill into RAM and get slow instead of refusing
_WSL_PERCENT, _WSL_LEAST = 8, 1024**3
_PRESSURE = 0.1  #: of a minute without a program that goes on, from which on RAM is short
_EVERY = "all"  #: names every card in the limits


class Devices:
    """Holds the devices that were found so far, and tells what they do now."""

    def __init__(
        self,
        cards: Cards | None = None,
        host: Host | None = None,
        cpu_memory_bytes: int | None = None,
        fake: Sequence[tuple[str, int]] = (),
        limits: Mapping[str, int] = MappingProxyType({}),
        ask: AskTorch | None = None,
    ) -> None:
        """``ask`` is how torch is asked what only it knows; None: it is not."""
        self._limits = limits
        self._ask = ask
        self._cards = cards
        self._host = host
        made_up = (_made_up(number, *each) for number, each in enumerate(fake))
        self._made_up = tuple(map(self._limited, made_up))
        self._processor = [_processor(host, cpu_memory_bytes)] if host else []
        self._waited: float | None = None  #: the share of a minute in which all waited for RAM
        self._marks: dict[tuple[str, str], Condition] = {}
        self._marking = threading.Lock()
        self._reading = threading.Lock()  #: the driver is asked by one thread at a time
        self._list: tuple[Device, ...] = ()
        self._rebuild()

    @classmethod
    def find(
        cls,
        fake: Sequence[tuple[str, int]] = (),
        cpu_memory_bytes: int | None = None,
        limits: Mapping[str, int] = MappingProxyType({}),
    ) -> Self:
        """Ask the driver; (name, memory_bytes) pairs replace what the machine has.

        ``limits``: the bytes of cards that may be planned with, by id or the beginning of the UUID.
        Never raises: a machine without a driver has its processor, and a note that says so.
        """
        if fake:
            return cls(fake=fake, limits=limits)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        around = Surroundings(environ=dict(os.environ))
        return cls(
            Cards.find(visible, around=around, build=torch_build()),
            Host(),
            cpu_memory_bytes,
            limits=limits,
            ask=ask_torch,
        )

    @property
    def driver(self) -> Driver | None:
        """Return the NVIDIA driver; None where there is none, or it was not asked."""
        return self._cards.driver if self._cards else None

    @property
    def note(self) -> str | None:
        """Return what an operator should know of the devices that were found."""
        if self._made_up:
            return "made-up devices stand in for those of this machine"
        return self._cards.note if self._cards else None

    @property
    def missing(self) -> str | None:
        """Say why a card that is there is no device, and what to do; None if nothing is missing."""
        return self._cards.missing if self._cards else None

    def unknown_limits(self) -> Sequence[str]:
        """List the limits of memory that are of no card that is there."""
        cards = [device for device in self._list if device.kind != CPU]
        return [
            name
            for name in self._limits
            if name != _EVERY and not any(_is_named(device, name) for device in cards)
        ]

    @property
    def slow_start(self) -> str | None:
        """Say that the driver takes long to start, and what to do; None if it does not."""
        return self._cards.slow_start if self._cards else None

    def pressure(self) -> str | None:
        """Say that programs waited for RAM at the last look, and what to do; None if they did not,
        or the kernel does not tell."""
        share = self._waited
        if share is None or share < _PRESSURE:
            return None
        return (
            f"For {share:.0%} of the last minute all programs have waited for RAM: unload models "
            "that run on the CPU or are offloaded, lower devices.cpu_memory_bytes or "
            "devices.page_cache_bytes, or stop other programs."
        )

    def problems(self) -> Mapping[str, str]:
        """Map the devices that are not well to their reasons, and "card" to why one is missing."""
        found = {each.id: each.condition.reason for each in self._list if each.condition.reason}
        return found | ({"card": self.missing} if self.missing else {})

    def list(self) -> tuple[Device, ...]:
        """List the accelerators first, the processor last."""
        return self._list

    def mark(self, device_id: str, state: State, reason: str, *, source: str) -> None:
        """Say that a device is not well. Its state is the worst that any source says of it.

        ``source`` names who says so ("faults", "suspend", ...); it alone can ``clear`` it again.
        ``reason`` is for the operator: what is, and what to do. May be called in any thread.
        """
        with self._marking:
            self._marks[device_id, source] = Condition(state, reason)
        self._rebuild()

    def clear(self, device_id: str, *, source: str) -> None:
        """Take back what this source said of a device; no harm if it said nothing."""
        with self._marking:
            self._marks.pop((device_id, source), None)
        self._rebuild()

    def _rebuild(self) -> None:
        with self._marking:
            self._list = tuple(map(self._marked, self._unmarked()))

    def _unmarked(self) -> Iterable[Device]:
        cards = self._cards.list if self._cards else ()
        return (*self._made_up, *map(self._card, cards), *self._processor)

    def _marked(self, device: Device) -> Device:
        condition = device.condition
        for (device_id, _), marked in self._marks.items():
            if device_id == device.id:
                condition = condition.worse(marked)
        return device if condition == device.condition else replace(device, condition=condition)

    def _card(self, card: Card) -> Device:
        assert self._cards is not None
        total = card.memory_bytes
        if card.unified and self._host is not None:
            total = self._host.total_bytes
        kept_free = total // _UNIFIED_PART if card.unified else 0
        if self._cards.are_of_windows:
            kept_free = max(kept_free, _WSL_LEAST, total * _WSL_PERCENT // 100)
        return self._limited(
            Device(
                card.id,
                card.name,
                "cuda",
                total,
                total,
                condition=self._cards.condition(card.id),
                pin=card.pin,
                unified=card.unified,
                exclusive=card.exclusive,
                capability=card.capability,
                display=card.display,
                kept_free=kept_free,
                note=self._cards.remark(card),
            )
        )

    def _limited(self, device: Device) -> Device:
        """Plan with no more of a card than the operator allows."""
        named = [name for name in self._limits if name != _EVERY and _is_named(device, name)]
        limit = self._limits.get(named[0] if named else _EVERY)
        if limit is None or limit >= device.physical_bytes:
            return device
        of = f"{limit / 1e9:.1f} of its {device.physical_bytes / 1e9:.1f} GB"
        told = f"is limited to {of} (devices.memory_limit)"
        note = f"{told} and {device.note}" if device.note else told
        return replace(device, memory_bytes=limit, note=note)

    def discount(self, unused: Callable[[], int]) -> None:
        """Count as free what a function says would be free at once if it were wanted, of RAM."""
        if self._host is not None:
            self._host.unused = unused

    def read(self, pids: Iterable[int] = (), *, idle: bool = False) -> dict[str, DeviceUsage]:
        """Read each device, by id; one that fails to answer is left out, and not well.

        Blocks for some milliseconds a card, for seconds if the driver hangs: call it in a thread.
        ``pids`` are the processes whose resident bytes the processor's reading tells; the driver
        tells a card's by itself. ``idle``: no model is loaded or about to be. Several threads may
        look at once: a load does, beside the survey of each second.
        """
        readings = {device.id: DeviceUsage(0, {}) for device in self._made_up}
        if self._cards is not None:
            with self._reading:
                readings |= self._cards.read(idle=idle)
        if self._host is not None:
            readings[CPU] = self._host.read(pids)
            self._waited = self._host.pressure()
        self._rebuild()
        for device in self._list:
            if device.unified and device.id in readings and CPU in readings:
                used = readings[CPU].used_bytes
                readings[device.id] = replace(readings[device.id], used_bytes=used)
        return readings

    def ask_torch(self) -> bool:
        """Ask torch, in a new process, what only it knows, if that is needed: the cards that it has
        code for, and those that there are without NVML. Returns True if something was learned.

        Blocks for many seconds.
        """
        if self._cards is None or self._ask is None or not self._cards.asks_torch:
            return False
        report = self._ask(self._cards.is_blind)
        if report is None:
            return False
        with self._reading:
            self._cards.learn(report)
        self._rebuild()
        return True

    def take_reports(self) -> Sequence[Report]:
        """Return the faults that cards have reported (Xid) since the last call."""
        return self._cards.take_reports() if self._cards else []

    def close(self) -> None:
        """Lets go of the driver's library. Cards are left out of every reading after it."""
        if self._cards is not None:
            self._cards.close()


def _is_named(device: Device, name: str) -> bool:
    """True if the name is a card's id, or the beginning of its UUID."""
    return device.id == name or (name.startswith(("GPU-", "MIG-")) and device.pin.startswith(name))


def _made_up(number: int, name: str, memory_bytes: int) -> Device:
    return Device(f"fake{number}", name, "fake", memory_bytes, memory_bytes)


def _processor(host: Host, budget: int | None) -> Device:
    total = host.total_bytes
    planned = total * _CPU_PERCENT // 100 if budget is None else budget
    return Device(CPU, host.name, "cpu", planned, total)
