"""The storage of cached answers, under a clock of the test's own."""

import random

import pytest

from bitinglip.results.cache.entries import Answer, Entries

MOST, OF_KEY, SECONDS = 10_000, 5_000, 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def entries(clock: Clock) -> Entries:
    return Entries(MOST, OF_KEY, SECONDS, clock)


def answer(size: int) -> Answer:
    made = Answer(b"", b"x" * (size - Answer(b"", b"").size))
    assert made.size == size
    return made


def key(number: int) -> bytes:
    return b"%d" % number


def test_cache_entries_expire(entries: Entries, clock: Clock) -> None:
    entries.put(b"a", "k", "m", answer(1000))
    clock.now = SECONDS - 1
    entries.put(b"b", "k", "m", answer(1000))
    assert entries.get(b"a") is not None
    clock.now = SECONDS
    assert entries.get(b"a") is None
    assert (len(entries), entries.bytes) == (1, 1000)
    clock.now = 2 * SECONDS
    entries.expire()
    assert (len(entries), entries.bytes) == (0, 0)


def test_cache_entries_may_be_asked_to_be_young(entries: Entries, clock: Clock) -> None:
    entries.put(b"a", "k", "m", answer(1000))
    clock.now = 10
    assert entries.get(b"a", max_age=9) is None
    assert entries.get(b"a", max_age=10) is not None


def test_cache_of_a_key_is_bounded_and_loses_what_was_used_longest_ago(entries: Entries) -> None:
    for number in range(5):
        entries.put(key(number), "k", "m", answer(1000))
    assert entries.get(key(0)) is not None
    entries.put(key(5), "k", "m", answer(1500))
    assert [number for number in range(6) if entries.get(key(number))] == [0, 3, 4, 5]
    assert (entries.bytes, entries.evicted) == (4500, 2)


def test_cache_of_one_key_does_not_push_out_another_s(entries: Entries) -> None:
    entries.put(b"mine", "small", "m", answer(1000))
    for number in range(100):
        entries.put(key(number), f"big-{number % 2}", "m", answer(1000))
    assert entries.get(b"mine") is not None
    assert entries.bytes <= MOST


def test_cache_keeps_no_answer_that_is_larger_than_a_key_may_hold(entries: Entries) -> None:
    entries.put(b"a", "k", "m", answer(1000))
    entries.put(b"b", "k", "m", answer(OF_KEY + 1))
    assert entries.get(b"b") is None
    assert entries.get(b"a") is not None
    entries.put(b"a", "k", "m", answer(OF_KEY + 1))  # nor the answer that it replaces
    assert (entries.get(b"a"), entries.bytes) == (None, 0)


def test_cache_is_cleared_by_model(entries: Entries) -> None:
    entries.put(b"a", "k", "one", answer(1000))
    entries.put(b"b", "k", "two", answer(1000))
    entries.clear("one".__eq__)
    assert (entries.get(b"a"), len(entries)) == (None, 1)
    entries.clear()
    assert (len(entries), entries.bytes) == (0, 0)


def test_cache_books_balance_whatever_happens(entries: Entries, clock: Clock) -> None:
    chance = random.Random(9)
    for _ in range(3000):
        clock.now += chance.random() * 3
        name, owner = key(chance.randrange(40)), f"k{chance.randrange(4)}"
        match chance.randrange(4):
            case 0:
                entries.get(name, chance.choice((None, 5.0)))
            case 1 if chance.random() < 0.05:
                entries.clear(f"m{chance.randrange(2)}".__eq__)
            case _:
                size = chance.randrange(600, 6000)
                entries.put(name, owner, f"m{chance.randrange(2)}", answer(size))
        held = [entry.answer.size for entry in entries._entries.values()]
        assert entries.bytes == sum(held) == sum(entries._bytes.values()) <= MOST
        assert max(entries._bytes.values(), default=0) <= OF_KEY
        assert sorted(name for used in entries._used.values() for name in used) == sorted(
            entries._entries
        )
