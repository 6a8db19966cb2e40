"""Judges what a worker's death is blamed on: the request, memory, device, node or a suspension.

A death that is not the request's counts neither towards its quarantine nor as a failure of the
model. Those of a device count against the device: two in ten minutes make it doubtful. Workers that
die together of no fault that they told are excused, but prove nothing against the device: requests
that crash them, or that are killed from outside, must not take it from all clients.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog

from bitinglip.scheduling.models.state import Replica
from workers.devices import Device, Report, State
from workers.devices.device import is_processor
from workers.devices.xid import meaning_of, sentence
from workers.faults import STUCK, Fault

log = structlog.get_logger(__name__)

Blame = Literal["operator", "request", "memory", "device", "suspension", "node"]

RESTARTED_BY_OPERATOR = "was restarted on request"
AFTER_DEVICE_FAULT = 1.0  #: seconds between a load that met a device's fault and the next

_TOGETHER = 2.0  #: seconds within which workers of one device die of the same thing
_REPORTED = 5.0  #: seconds between a card's report of a fault and deaths of what it names
_REMEMBERED = 600.0  #: seconds; a device is in question for as long
_FIRST_WAIT = 30.0  #: seconds before a probe of a device that was put in question
_MOST_FAULTS = 2  #: of a device within that time
_LONGEST_PAUSE = 60.0  #: seconds before a model's next start
_UNTOLD_PAUSE = 2.0  #: likewise, after a death of no fault that was told

_TOGETHER_REASON = (
    "Workers on it have died at the same moment more than once in ten minutes: look at the "
    "kernel's log for Xid lines. It is used again once a new process computes on it."
)


class DeviceStates(Protocol):
    """Knows the devices, what they report, and lets them be put in question: the facts."""

    @property
    def devices(self) -> tuple[Device, ...]: ...
    def mark(self, device: str, state: State, reason: str, *, source: str) -> None: ...
    def clear(self, device: str, *, source: str) -> None: ...
    def take_reports(self) -> Sequence[Report]: ...


@dataclass(eq=False, slots=True)
class Death:
    """Describes a worker's death, its cause, and how to take back what it was charged with."""

    worker: str
    model: str
    devices: frozenset[str]
    at: float
    blame: Blame
    fault: Fault | None = None  #: as the worker told it
    undo: list[Callable[[], None]] = field(default_factory=list)  #: run if it turns out innocent

    @property
    def is_excused(self) -> bool:
        """True if it counts neither against the request nor against the model."""
        return self.blame in ("memory", "device", "suspension", "node")

    def blame_device(self) -> None:
        """Excuse a death that another one has shown to be the device's."""
        self.blame = "device"
        for undo in self.undo:
            undo()
        self.undo.clear()


@dataclass(slots=True)
class _Mark:
    """A device is in question because of a fault."""

    reason: str
    at: float  #: when it was put in question, or found to fail, last
    probe_at: float  #: when a new process may find out whether it computes


class Deaths:
    """Remembers the deaths of the last minutes; the clock is the caller's."""

    def __init__(self, states: DeviceStates) -> None:
        self._states = states
        self._deaths: deque[Death] = deque()
        self._faults: dict[str, deque[float]] = {}  #: by device
        self._marked: dict[str, _Mark] = {}  #: by device
        self._waits: dict[str, tuple[float, float]] = {}  #: by device: last mark, wait for a probe
        self._reported: dict[str, float] = {}  #: by device: when it reported a fault of its own

    def judge(self, replica: Replica, fault: Fault | None, cause: str, now: float) -> Death:
        """Judge the death of a replica's worker.

        Deaths of other workers of its device a moment ago are excused with it.
        """
        self._forget(now)
        cards = _cards(replica.devices)
        asked = cause == RESTARTED_BY_OPERATOR
        blame: Blame = "operator" if asked else "request"
        death = Death(replica.id, replica.model, cards, now, blame, fault)
        if not asked and fault is not None and fault.blame in ("memory", "device"):
            death.blame = "memory" if fault.blame == "memory" else "device"
        lost_node = fault is not None and fault.blame == "node"
        if not asked and (replica.slept or lost_node):
            death.blame = "node" if lost_node else "suspension"
            self._deaths.append(death)
            return death
        neighbours = self._neighbours(death)
        in_question = self._in_question(cards) or self._has_reported(cards, now)
        if neighbours or in_question:
            for each in (death, *neighbours):
                if each.blame == "request":
                    each.blame_device()
        # What put a device in question judges when it is well again: this adds nothing to it.
        told = any(each.fault is not None for each in (death, *neighbours))
        if death.blame == "device" and told and not in_question:
            self._blame(cards, fault, now)
        self._deaths.append(death)
        return death

    def load_failed(self, devices: Iterable[str], fault: Fault | None, now: float) -> bool:
        """Note a load that failed; returns True if it is blamed on its device or node."""
        self._forget(now)
        cards = _cards(devices)
        if fault is not None and fault.blame == "node":
            return True
        if fault is None or fault.blame != "device" or not cards:
            return False
        if not self._in_question(cards):
            self._blame(cards, fault, now)
        return True

    def pause(self, model: str, now: float) -> float:
        """Return the seconds to wait before the next start of a model whose last
        death was excused."""
        self._forget(now)
        excused = [each for each in self._deaths if each.model == model and each.is_excused]
        if len(excused) <= 1:
            return 0.0
        longest = _UNTOLD_PAUSE if excused[-1].fault is None else _LONGEST_PAUSE
        return min(longest, 2.0 ** (len(excused) - 2))

    def refresh(self, now: float) -> None:
        """Take in what cards report by themselves, and let devices be tried again that have had no
        fault for ten minutes."""
        for report in self._states.take_reports():
            self._take(report, now)
        for device in [each for each, m in self._marked.items() if now - m.at >= _REMEMBERED]:
            self.computes(device)

    def due(self, now: float) -> list[str]:
        """List the devices in question that may be probed now."""
        return [device for device, mark in self._marked.items() if now >= mark.probe_at]

    def computes(self, device: str) -> None:
        """Let a device be used again; the next fault in ten minutes puts it in question at once."""
        if self._marked.pop(device, None) is not None:
            self._states.clear(device, source="faults")

    def still_fails(self, device: str, why: str, now: float) -> None:
        """Keep a device in question on which a new process does not compute."""
        if (mark := self._marked.get(device)) is not None:
            mark.at, mark.probe_at = now, now + self._waits[device][1]
            reason = f"{mark.reason} A new process does not compute on it, either ({why})."
            self._states.mark(device, "doubtful", reason, source="faults")

    def _take(self, report: Report, now: float) -> None:
        """Excuse what has died of a card's fault a moment ago; put the card in question if no
        program is safe there."""
        blame, card, told = meaning_of(report.number).blame, report.device, sentence(report.number)
        log.warning("a card has reported a fault", card=card, blamed_on=blame, meaning=told)
        if blame not in ("contained", "card"):
            return
        self._reported[card] = now
        for death in self._deaths:
            if death.blame == "request" and card in death.devices and now - death.at <= _REPORTED:
                death.blame_device()
        if blame == "card":
            self._mark(card, told, now)

    def _has_reported(self, cards: frozenset[str], now: float) -> bool:
        return any(now - self._reported.get(card, -_REPORTED) < _REPORTED for card in cards)

    def stuck(self, replica: Replica) -> None:
        """Put the devices in question of a process that was killed and does not end."""
        for card in _cards(replica.devices):
            self._states.mark(card, "doubtful", STUCK.sentence, source=f"stuck {replica.id}")

    def gone(self, replica: Replica) -> None:
        """Take that back: the process has ended after all."""
        for card in _cards(replica.devices):
            self._states.clear(card, source=f"stuck {replica.id}")

    def _neighbours(self, death: Death) -> list[Death]:
        """Return the deaths of other workers on its device a moment ago."""
        return [
            each
            for each in self._deaths
            if death.blame in ("request", "device")
            and each.blame in ("request", "device")
            and death.at - each.at <= _TOGETHER
            and each.worker != death.worker
            and each.devices & death.devices
        ]

    def _in_question(self, cards: frozenset[str]) -> bool:
        return any(
            device.id in cards and device.condition.state != "well"
            for device in self._states.devices
        )

    def _blame(self, cards: frozenset[str], fault: Fault | None, now: float) -> None:
        """Count a fault against devices; deaths at the same moment are one."""
        for card in cards:
            faults = self._faults.setdefault(card, deque())
            if not faults or now - faults[-1] > _TOGETHER:
                faults.append(now)
            certain = fault is not None and fault.certain
            if certain or len(faults) >= _MOST_FAULTS:
                has_reason = fault is not None and fault.blame == "device"
                self._mark(card, fault.sentence if fault and has_reason else _TOGETHER_REASON, now)

    def _mark(self, card: str, reason: str, now: float) -> None:
        """Put a card in question; each time within ten minutes it waits twice as long."""
        last, waited = self._waits.get(card, (now, _FIRST_WAIT / 2))
        wait = min(2 * waited, _REMEMBERED) if now - last < _REMEMBERED else _FIRST_WAIT
        self._waits[card] = now, wait
        self._marked[card] = _Mark(reason, now, now + wait)
        self._states.mark(card, "doubtful", reason, source="faults")

    def _forget(self, now: float) -> None:
        while self._deaths and now - self._deaths[0].at > _REMEMBERED:
            self._deaths.popleft()
        for faults in self._faults.values():
            while faults and now - faults[0] > _REMEMBERED:
                faults.popleft()


def _cards(devices: Iterable[str]) -> frozenset[str]:
    """Return the devices that can have a fault of their own: all but the processor."""
    return frozenset(device for device in devices if not is_processor(device))
