"""Watches the cards: found at the start and later, read with a deadline, each with its
condition."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workers.devices.deadline import DeadlineThread, Silent
from workers.devices.device import WELL, Condition, DeviceUsage
from workers.devices.nvml import Card, Driver, Found, Nvml, visible_names
from workers.devices.remarks import remark
from workers.devices.surroundings import LIBRARIES, Surroundings, has_nodes, why_missing
from workers.devices.torch_build import TorchBuild, card_unfit, driver_unfit, needs_building
from workers.devices.torch_report import TorchReport
from workers.devices.xid import Report

NO_DRIVER = "no NVIDIA driver: models run on the CPU"
LOOK_SECONDS = 2.0  #: limit on a look at the cards
_FIRST_SECONDS = 15.0  #: the driver's first start takes seconds where nothing keeps it loaded
_PATIENCE = 10.0  #: for this long the last figures stand in for a driver that does not answer
_SEARCH_SECONDS = 5.0  #: between two searches for a card that is missing, in the first minutes
_SEARCH_SECONDS_LATER = 60.0
_FIRST_MINUTES = 300.0
_CHECK_SECONDS = 10.0  #: between two looks at the driver's files
_SLOW_START = 2.0
_MANY = 1024  #: more cards than a machine has
_MOST_REPORTS = 256  #: of cards that were not asked for
_SLEEP_SECONDS = 60.0  #: without a model, after which a laptop's card is let sleep

_HANGS = "The NVIDIA driver does not answer: see what nvidia-smi says, and restart the machine."
_BY_TORCH = (
    "Until then it is used as torch tells of it: what other programs hold there is not known."
)
_SILENT = "the NVIDIA driver does not answer: models run on the CPU"
_LOST = (
    "The card is lost to its driver (it fell off the bus): restart the machine, or switch it off "
    "and on; look at power supply, heat, riser or cable."
)
_GONE = "The driver does not show the card any more: look for NVRM in the kernel's log (dmesg)."
_PROHIBITED = "Its compute mode is prohibited: run nvidia-smi -c 0 as root."


class Cards:
    """Holds the cards that the driver shows and that CUDA_VISIBLE_DEVICES leaves to us."""

    def __init__(
        self,
        nvml: Nvml,
        visible: str | None,
        around: Surroundings,
        build: TorchBuild | None,
        clock: Callable[[], float],
        look_seconds: float,
    ) -> None:
        self._nvml = nvml
        self._visible = visible
        self._around = around
        self._build = build
        self._clock = clock
        self._seconds = look_seconds
        self._thread = DeadlineThread("nvml")
        self._closed = False
        self.driver: Driver | None = None
        self.list: tuple[Card, ...] = ()
        self.note: str | None = None  #: what an operator should know
        self.missing: str | None = None  #: why a card that is there is no device, and what to do
        self._unfit: dict[str, Condition] = {}  #: by id, found out from the card's own facts
        self._failures: dict[str, tuple[int, Condition]] = {}  #: by id: looks that failed in a row
        self._last: dict[str, DeviceUsage] = {}
        self._reports: deque[Report] = deque(maxlen=_MOST_REPORTS)
        self._files: Condition = WELL  #: what the driver's files tell
        self._check_at = 0.0
        self._silent_since: float | None = None
        self._idle_since: float | None = None
        self._asleep = False
        self._trouble_since: float | None = None  #: a card is missing, or does not answer
        self._start_seconds: float | None = None  #: the driver's first start
        self._library_missing = False
        self._by_torch = False  #: the cards are told of by torch, for want of the driver's library
        self._search_at = 0.0

    @classmethod
    def find(
        cls,
        visible: str | None,
        nvml: Any = None,
        *,
        around: Surroundings | None = None,
        build: TorchBuild | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
        first_seconds: float = _FIRST_SECONDS,
    ) -> "Cards":
        """Ask the driver. ``visible`` is CUDA_VISIBLE_DEVICES of this process, ``nvml`` what stands
        in for pynvml, ``build`` the torch that is to use the cards. Never raises: without a driver
        there are no cards, and a note.
        """
        if nvml is None:
            import pynvml

            nvml = pynvml
        around = around or Surroundings()
        libraries = [around.root / path for path in LIBRARIES]
        connection = Nvml(nvml, libraries, memory_v2=not around.is_wsl)
        cards = cls(connection, visible, around, build, clock, look_seconds)
        cards._search(first_seconds)
        return cards

    # ---- search ------------------------------------------------------------------------------

    def _search(self, seconds: float) -> None:
        """Ask for all cards again; those that were known keep their ids."""
        try:
            found = self._thread.ask(self._found, seconds)
        except Silent:
            self._not_found(True, False, "it does not answer in time", _SILENT)
        except self._nvml.error as error:
            absent = self._library_missing = self._nvml.is_absent(error)
            told = f"the NVIDIA driver does not answer ({error}): models run on the CPU"
            note = NO_DRIVER if self._nvml.is_no_driver(error) else told
            self._not_found(not absent, self._nvml.is_mismatch(error), str(error), note)
        else:
            self._take(found)
        self._plan_search()

    def _found(self) -> Found:
        self._nvml.close()  # a connection shows the cards that were there when it was made
        began = time.monotonic()
        self._nvml.open()
        self._start_seconds = self._start_seconds or time.monotonic() - began
        return self._nvml.find(self._visible)

    @property
    def slow_start(self) -> str | None:
        """Say that the driver takes long to start, as each first program after a rest finds."""
        seconds = self._start_seconds or 0.0
        headless = not any(card.display for card in self.list)
        if seconds < _SLOW_START or not headless or self._around.is_wsl:
            return None
        return (
            f"the NVIDIA driver took {seconds:.1f} s to start, and ends when no program uses it: "
            "enable nvidia-persistenced"
        )

    def _not_found(self, library_found: bool, mismatch: bool, told: str, note: str) -> None:
        if self._by_torch:
            return
        for card in self.list:
            self._failures.setdefault(card.id, (1, Condition("doubtful", _HANGS)))
        if self.list:
            return
        self.note, self.missing = note, None
        if self._wants_cards():
            self.missing = why_missing(self._around, library_found, mismatch, told)

    def _wants_cards(self) -> bool:
        """False if the operator hides all cards from us, by CUDA_VISIBLE_DEVICES."""
        return self._visible is None or bool(visible_names(self._visible, _MANY))

    @property
    def asks_torch(self) -> bool:
        """True while torch could tell which cards it has code for, or which there are."""
        if self._build is None or self._build.cuda is None:
            return False
        return self.is_blind or bool(self.list and not self._build.architectures)

    @property
    def is_blind(self) -> bool:
        """True if there may be cards that only NVML does not tell, for want of its library."""
        return self._library_missing and self.missing is not None and has_nodes(self._around)

    def learn(self, report: TorchReport) -> None:
        """Take over what torch has told of itself, and its cards while NVML shows none."""
        if self._build is not None:
            self._build = replace(self._build, architectures=report.architectures or ("?",))
        if not self.list and self._library_missing and self._wants_cards() and report.cards:
            self._by_torch = True
            self.note, self.missing = f"{self.missing} {_BY_TORCH}", None
            self.list = tuple(
                Card(
                    str(index), card.pin, card.name, card.memory_bytes, None, None, card.capability
                )
                for index, card in enumerate(report.cards)
            )
        self._unfit = {card.id: self._judge(card, self.driver) for card in self.list}

    def _take(self, found: Found) -> None:
        self.driver = found.driver
        self._by_torch = self._library_missing = False
        fresh = {card.pin: card for card in found.cards}
        merged = []
        for card in self.list:
            known = fresh.pop(card.pin, None)
            merged.append(replace(known, id=card.id) if known else card)
            if known is None:
                self._failures.setdefault(card.id, (2, Condition("lost", _GONE)))
            else:
                self._failures.pop(card.id, None)
        ids = {card.id for card in merged}
        merged += [
            replace(card, id=card.pin) if card.id in ids else card for card in fresh.values()
        ]
        self.list = tuple(merged)
        self._unfit = {card.id: self._judge(card, found.driver) for card in self.list}
        gone = len(self.list) - len(found.cards)  # of those, each has its own condition
        self.note = _note(found, self._visible) if len(found.silent) > gone or not gone else None
        self.missing = None
        if len(found.silent) > gone:
            self.missing = f"{_silent(found)}. {_LOST}"
        elif not self.list and self._wants_cards():
            self.missing = why_missing(self._around, True, False, "it shows none")
        elif self._visible is not None and self.list:
            self._visible = ",".join(card.pin for card in self.list)  # indices may shift

    def _judge(self, card: Card, driver: Driver | None) -> Condition:
        if card.prohibited:
            return Condition("lost", _PROHIBITED)
        if self._build is not None:
            reason = driver and driver_unfit(self._build, driver.version, driver.cuda)
            if reason := reason or card_unfit(self._build, card.capability):
                return Condition("lost", reason)
        return WELL

    def _plan_search(self) -> None:
        if self.missing is None and not self._failures and not self._by_torch:
            self._trouble_since = None
            return
        now = self._clock()
        if self._trouble_since is None:
            self._trouble_since = now
        early = now - self._trouble_since < _FIRST_MINUTES
        self._search_at = now + (_SEARCH_SECONDS if early else _SEARCH_SECONDS_LATER)

    # ---- looks -------------------------------------------------------------------------------

    def condition(self, card_id: str) -> Condition:
        """Return the state of a card, as far as the driver and its files tell."""
        found = self._failures.get(card_id, (0, WELL))[1]
        return found.worse(self._unfit.get(card_id, WELL)).worse(self._files)

    @property
    def are_of_windows(self) -> bool:
        """True under WSL, where the driver is that of Windows."""
        return self._around.is_wsl

    def remark(self, card: Card) -> str | None:
        """Say what is special of a card, and no fault; None if nothing is."""
        build = self._build
        return remark(
            card,
            asleep=self._asleep,
            in_wsl=self._around.is_wsl,
            needs_building=build is not None and needs_building(build, card.capability),
            reports=card.pin not in self._nvml.events.unwatched,
        )

    def read(self, *, idle: bool = False) -> dict[str, DeviceUsage]:
        """Look once at each card; those that do not answer are left out, and not well.

        ``idle``: no model is loaded or about to be, so that a laptop's card may sleep.
        """
        now = self._clock()
        if self._closed or self._sleeps(idle, now):
            return dict(self._last) if not self._closed else {}
        if self._trouble_since is not None and now >= self._search_at:
            self._search(self._seconds)
        if not self.list:
            return {}
        if now >= self._check_at:
            self._check_at = now + _CHECK_SECONDS
            self._check_files()
        try:
            looks = self._thread.ask(self._look, self._seconds)
        except Silent:
            return self._on_silence(now)
        self._silent_since = None
        for card_id, look in looks.items():
            self._note_look(card_id, look)
        self._last = {name: look for name, look in looks.items() if isinstance(look, DeviceUsage)}
        if self._failures and self._trouble_since is None:
            self._plan_search()
        return dict(self._last)

    def _look(self) -> dict[str, DeviceUsage | Exception]:
        looks: dict[str, DeviceUsage | Exception] = {}
        for card in self.list:
            if card.handle is None:  # the driver does not tell what other programs hold there
                looks[card.id] = DeviceUsage(0, {})
                continue
            try:
                looks[card.id] = self._nvml.usage(card)
            except self._nvml.error as error:
                looks[card.id] = error
        ids = {card.pin: card.id for card in self.list}
        for pin, number in self._nvml.events.take():
            self._reports.append(Report(ids.get(pin, pin), number))
        return looks

    def take_reports(self) -> list[Report]:
        """Return what cards have reported by themselves since the last call."""
        return [self._reports.popleft() for _ in range(len(self._reports))]

    def _note_look(self, card_id: str, look: DeviceUsage | Exception) -> None:
        if isinstance(look, DeviceUsage):
            self._failures.pop(card_id, None)
            return
        times = self._failures.get(card_id, (0, WELL))[0] + 1
        if self._nvml.is_lost(look):
            found = Condition("lost" if times > 1 else "doubtful", _LOST)
        else:
            found = Condition("doubtful", f"The card does not answer its driver ({look}).")
        self._failures[card_id] = (times, found)

    def _on_silence(self, now: float) -> dict[str, DeviceUsage]:
        """Let the last figures stand for a while; then no card is well until the driver answers."""
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since < _PATIENCE:
            return dict(self._last)
        for card in self.list:
            self._failures.setdefault(card.id, (1, Condition("doubtful", _HANGS)))
        self._last = {}
        return {}

    def _check_files(self) -> None:
        """See whether the driver was changed under us, or this container lost its rights."""
        reason = self._around.may_open()
        if reason is None and self.driver is not None and not self._around.is_wsl:
            reason = self._around.driver_changed(self.driver.version)
        self._files = Condition("doubtful", reason) if reason else WELL

    def _sleeps(self, idle: bool, now: float) -> bool:
        """True if the card of a machine with a battery is left alone: each look would wake it."""
        if not idle or not self.list or not self._around.has_battery:
            self._idle_since = None
            if self._asleep:
                self._asleep = False
                self._search(self._seconds)
            return False
        if self._idle_since is None:
            self._idle_since = now
        buses = [card.bus_id for card in self.list]
        suspended = any(bus and self._around.runtime_suspended(bus) for bus in buses)
        if not self._asleep and (suspended or now - self._idle_since >= _SLEEP_SECONDS):
            self._asleep = True
            self._ask_to_close()
            self._last = {
                name: replace(look, processes={}, utilisation=None, power_w=None)
                for name, look in self._last.items()
            }
        return self._asleep

    def close(self) -> None:
        """Let go of the driver; one that hangs is left where it hangs."""
        self._closed = True
        self._ask_to_close()

    def _ask_to_close(self) -> None:
        try:
            self._thread.ask(self._nvml.close, self._seconds)
        except Silent:
            return


def _silent(found: Found) -> str:
    return f"these cards do not answer and are left out: {', '.join(found.silent)}"


def _note(found: Found, visible: str | None) -> str | None:
    parts = []
    if found.silent:
        parts.append(_silent(found))
    elif not found.count:
        parts.append("the NVIDIA driver shows no card")
    elif not found.cards and visible is not None:
        parts.append(f"CUDA_VISIBLE_DEVICES={visible!r} leaves no card to us")
    elif not found.cards:
        parts.append("the cards are partitioned (MIG), but have no instances")
    if not found.cards:
        parts.append("models run on the CPU")
    return ": ".join(parts) or None
