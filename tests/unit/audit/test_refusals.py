"""Refusals: a flood of them costs few entries, and no stranger pushes others' entries out."""

import time

from bitinglip.audit.entry import Action, Actor, Entry
from bitinglip.audit.refusals import BURST, MINUTE, MOST_SOURCES, SECONDS_EACH, Refusals

DAY = 86_400.0


class Flood:
    """Refuses requests, by a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.entries: list[Entry] = []
        self.refusals = Refusals(self.entries.append, clock=lambda: self.now)

    def note(
        self, address: str = "10.0.0.1", code: str = "INVALID_API_KEY", times: int = 1
    ) -> None:
        for _ in range(times):
            self.refusals.note(Action.AUTH_REFUSED, Actor("unknown", address=address), code)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.refusals.tick()

    def counted(self) -> int:
        """Return how many refusals the entries tell of."""
        return sum(1 if each.after is None else each.after["count"] for each in self.entries)


def test_refusal_is_an_entry_at_once_and_further_ones_are_counted_by_the_minute() -> None:
    flood = Flood()
    flood.note(times=500)
    flood.note(code="EXPIRED_API_KEY")
    assert [(each.outcome, each.after) for each in flood.entries] == [
        ("INVALID_API_KEY", None),
        ("EXPIRED_API_KEY", None),
    ]
    flood.pass_time(MINUTE / 2)
    assert len(flood.entries) == 2
    flood.pass_time(MINUTE / 2)
    assert flood.entries[2].after == {"count": 499, "seconds": 60}
    flood.note(times=3)
    flood.pass_time(MINUTE)
    assert flood.entries[3].after == {"count": 3, "seconds": 60}
    for _ in range(3):
        flood.pass_time(MINUTE)
    assert len(flood.entries) == 4
    flood.note()  # it was quiet for a minute: a first one again
    assert flood.entries[4].after is None


def test_refusals_of_many_addresses_are_bounded_and_all_counted() -> None:
    flood = Flood()
    for number in range(50_000):
        flood.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(flood.entries) == BURST
    assert len(flood.refusals._sources) <= MOST_SOURCES
    flood.refusals.finish()
    assert flood.counted() == 50_000
    last = flood.entries[-1].after
    assert last is not None
    assert last["by_code"] == {"INVALID_API_KEY": 50_000 - BURST}


def test_refusals_of_a_flood_that_does_not_end_are_few_entries_a_day() -> None:
    flood = Flood()
    for minute in range(24 * 60):
        for number in range(30):
            flood.note(f"10.0.{minute & 255}.{number}", times=5)
        flood.pass_time(MINUTE)
    flood.refusals.finish()
    assert flood.counted() == 24 * 60 * 150
    assert len(flood.entries) <= BURST + DAY / SECONDS_EACH + 26
    # a year of it leaves room for the entries of a million that matter
    assert 365 * (DAY / SECONDS_EACH + 25) < 300_000


def test_refusal_costs_the_loop_microseconds() -> None:
    flood = Flood()
    began = time.perf_counter()
    flood.note(times=20_000)
    assert (time.perf_counter() - began) / 20_000 < 0.001  # it takes 2 us on an idle machine
