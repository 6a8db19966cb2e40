"""The store takes from all limits of a request, or from none; its size is bounded."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access.limits.gcra import FULL, SECOND, Rate
from bitinglip.access.limits.store import Cell, MemoryStore

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
PER_MINUTE = Cell("k:minute", Rate(10, MINUTE, 10))
PER_HOUR = Cell("k:hour", Rate(12, HOUR, 12))
NOW = 10**12


def test_store_admits_exactly_the_limit_of_many_at_once() -> None:
    async def rush() -> int:
        store = MemoryStore()
        asked = [store.take([PER_MINUTE, PER_HOUR], NOW) for _ in range(200)]
        return sum(decision.wait == 0 for decision in await asyncio.gather(*asked))

    assert asyncio.run(rush()) == 10


def test_store_takes_nothing_where_one_limit_refuses() -> None:
    store = MemoryStore()
    for _ in range(10):
        assert store.take_now([PER_MINUTE, PER_HOUR], NOW).wait == 0
    refused = store.take_now([PER_MINUTE, PER_HOUR], NOW)
    assert (refused.wait, refused.refusing) == (6 * SECOND, (0,))
    assert [reading.remaining for reading in refused.readings] == [0, 2]
    for later in (6, 12):
        assert store.take_now([PER_MINUTE, PER_HOUR], NOW + later * SECOND).wait == 0
    both = store.take_now([PER_MINUTE, PER_HOUR], NOW + 12 * SECOND)
    assert (both.refusing, both.wait) == ((0, 1), 288 * SECOND)  # the longer of the two


@given(st.lists(st.integers(0, 20 * SECOND), max_size=60), st.integers(1, FULL))
def test_store_passes_exactly_after_the_longest_wait(gaps: list[int], share: int) -> None:
    store, now = MemoryStore(), NOW
    for gap in gaps:
        now += gap
        decision = store.take_now([PER_MINUTE, PER_HOUR], now, share=share)
        if decision.wait:
            early = now + decision.wait - 1
            assert store.take_now([PER_MINUTE, PER_HOUR], early, cost=1, share=share).wait
            now += decision.wait
            assert store.take_now([PER_MINUTE, PER_HOUR], now, share=share).wait == 0


def test_store_gives_refunds_and_reads_without_taking() -> None:
    store = MemoryStore()
    store.take_now([PER_MINUTE, PER_HOUR], NOW, share=400)
    store.refund([PER_MINUTE, PER_HOUR], share=400)
    for _ in range(3):
        read = store.take_now([PER_MINUTE, PER_HOUR], NOW, cost=0)
        assert [reading.remaining for reading in read.readings] == [10, 12]
    store.refund([Cell("nobody:minute", PER_MINUTE.rate)])
    assert len(store) == 2


def test_store_keeps_the_time_where_a_key_gets_another_tier() -> None:
    store = MemoryStore()
    for _ in range(10):
        store.take_now([PER_MINUTE], NOW)
    better = Cell(PER_MINUTE.id, Rate(100, MINUTE, 100))
    assert store.take_now([better], NOW).wait == SECOND * 6 // 10


def test_store_is_bounded_and_forgets_first_what_is_nearly_over() -> None:
    store = MemoryStore(most=80)
    heavy = Cell("heavy", Rate(1, HOUR, 1))
    store.take_now([heavy], NOW)
    for number in range(10_000):
        store.take_now([Cell(f"address {number}", PER_MINUTE.rate)], NOW + number)
        assert len(store) <= 80
    assert store.take_now([heavy], NOW + 10_000).wait > 0


def test_store_drops_cells_that_are_full_again_before_others() -> None:
    store = MemoryStore(most=80)
    for number in range(79):
        store.take_now([Cell(f"old {number}", PER_MINUTE.rate)], NOW)
    store.take_now([PER_HOUR], NOW)
    store.take_now([Cell("new", PER_MINUTE.rate)], NOW + MINUTE)
    assert len(store) == 2


def test_store_hands_its_changes_to_another_one() -> None:
    store, second = MemoryStore(), MemoryStore()
    for _ in range(12):
        store.take_now([PER_HOUR], NOW)
    changes = store.changes()
    assert changes == {"k:hour": NOW + HOUR}
    assert store.changes() == {}
    store.unwritten(changes)
    second.restore(store.changes())
    assert second.take_now([PER_HOUR], NOW).wait == 300 * SECOND
