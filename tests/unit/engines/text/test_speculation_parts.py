"""Drafts of speculation, and how a step takes them: pure bookkeeping, tested by random play."""

import random

import pytest

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.lookup import LookupIndex
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.prefix_keys import PrefixKeys
from workers.engines.text.sample import Choice
from workers.engines.text.scheduler import Scheduler
from workers.engines.text.speculation import _fair_share, by_chunk, sampled_places


def latest_earlier_place(tokens: list[int]) -> int | None:
    """Return the place where the last three tokens were before, by a search of the whole text."""
    for place in range(len(tokens) - 1, 2, -1):
        if tokens[place - 3 : place] == tokens[-3:]:
            return place
    return None


@pytest.mark.parametrize("words", [2, 5, 40])
def test_lookup_finds_the_latest_earlier_place(words: int) -> None:
    """Compare with a search through all of the text, but for places that share their slots. The
    tokens come one by one or many at once."""
    chance = random.Random(words)
    tokens = [chance.randrange(words) for _ in range(chance.randrange(60))]
    index = LookupIndex()
    there = lost = 0
    for _ in range(1500):
        tokens += [chance.randrange(words) for _ in range(chance.choice((1, 1, 1, 4)))]
        place = latest_earlier_place(tokens)
        guess = index.guess(tokens, 6)
        assert index.guess(tokens, 6) == guess
        there += place is not None
        lost += place is not None and not guess
        if guess:
            assert place is not None
            assert len(guess) >= 2
            assert guess == (tokens + 6 * tokens[place:])[place : place + len(guess)]
    assert there > 20 * lost


def test_lookup_continues_a_repetition_beyond_its_end() -> None:
    assert LookupIndex().guess([1, 2, 3, 9, 9, 9, 9, 9, 9, 9, 9], 5) == [9] * 5
    assert LookupIndex().guess([5, 6, 7] * 4, 7) == [5, 6, 7, 5, 6, 7, 5]


def test_lookup_takes_few_operations_of_a_long_text() -> None:
    """The index neither grows with each token nor looks through the text again."""

    class Counted(list[int]):
        reads = 0

        def __getitem__(self, place: object) -> object:  # type: ignore[override]
            found = super().__getitem__(place)  # type: ignore[call-overload]
            Counted.reads += len(found) if isinstance(place, slice) else 1
            return found

    tokens = Counted(range(20_000))
    index = LookupIndex()
    index.guess(tokens, 8)
    Counted.reads = 0
    for token in range(1000):
        tokens.append(7 * token)
        index.guess(tokens, 8)
    assert Counted.reads < 20 * 1000


@pytest.mark.parametrize(
    ("wanting", "room", "most"),
    [([4], 9, 4), ([2, 8, 8], 12, 5), ([8, 8, 8], 2, 0), ([1, 6], 5, 4)],
)
def test_drafts_share_the_room_of_a_step(wanting: list[int], room: int, most: int) -> None:
    assert _fair_share(wanting, room) == most
    assert sum(min(each, most) for each in wanting) <= room


def test_drafts_hold_up_to_the_first_that_is_wrong() -> None:
    one, two = Sequence("one", [1, 2]), Sequence("two", [3])
    order = [
        Chunk(one, 1, 5, samples=True, drafts=(7, 8, 9)),
        Chunk(two, 0, 1, samples=True),
    ]
    assert list(sampled_places(order)) == [(one, 0), (one, 1), (one, 2), (one, 3), (two, 0)]
    choices = [Choice(token) for token in (7, 5, 9, -1, 4)]
    first, second = by_chunk(order, choices)
    assert [each.token for each in first.choices] == [7, 5]
    assert (first.accepted, first.broken) == (1, True)
    assert [each.token for each in second.choices] == [4]
    assert (second.accepted, second.broken) == (0, False)


def test_drafts_of_a_single_row_are_left_out_when_memory_runs_out() -> None:
    chunk = Chunk(Sequence("one", [1, 2]), 1, 4, samples=True, drafts=(7, 8))
    (half,) = Plan([chunk], [], [], []).halves()
    assert half.decodes == [Chunk(chunk.sequence, 1, 2, samples=True)]
    assert half.halves() == []


@pytest.mark.parametrize("seed", range(12))
def test_drafts_keep_the_counts_and_starve_no_request(seed: int) -> None:
    """Random drafts, some of them right: budget, blocks and published keys stay as they must be."""
    chance = random.Random(seed)
    blocks, step_tokens = chance.randint(8, 30), chance.randint(8, 24)
    allocator = BlockAllocator(blocks, 4)
    scheduler = Scheduler(allocator, max_rows=chance.randint(1, 6), step_tokens=step_tokens)
    left = {}
    for number in range(20):
        prompt = [chance.randrange(3) for _ in range(chance.randint(1, 2 * blocks))]
        one = Sequence(f"s{number}", prompt, keys=PrefixKeys("all", 4))
        left[one.id] = (one, len(prompt) + chance.randint(1, blocks))
        scheduler.add(one)
    for _ in range(20_000):
        if not left:
            break
        for one, most in left.values():
            count = min(chance.randrange(5), most - len(one.tokens) - 1)
            one.drafts = [chance.randrange(3) for _ in range(count)] if one.pending == 1 else []
        plan = scheduler.schedule()
        assert 0 < plan.tokens <= step_tokens
        check(plan, allocator)
        scheduler.commit(plan)
        for chunk in plan.chunks:
            if chunk.samples:
                take(scheduler, chunk, [chance.randrange(3) for _ in range(5)])
            one = chunk.sequence
            if len(one.tokens) >= left[one.id][1]:
                del left[one.id]
                scheduler.remove(one)
    assert not left
    assert allocator.used_count == scheduler.running_count == scheduler.waiting_count == 0


def take(scheduler: Scheduler, chunk: Chunk, sampled: list[int]) -> None:
    """Let a chunk's tokens be sampled; its drafts hold while they are the same."""
    right = 0
    while right < len(chunk.drafts) and chunk.drafts[right] == sampled[right]:
        right += 1
    chunk.sequence.tokens += sampled[: right + 1]
    scheduler.accept(chunk.sequence, right)
    assert chunk.sequence.pending == 1


def check(plan: Plan, allocator: BlockAllocator) -> None:
    books = allocator.books()
    assert books["free"] + books["used"] == books["total"]
    for chunk in plan.chunks:
        sequence = chunk.sequence
        assert len(sequence.blocks) * allocator.block_size >= chunk.end
        assert chunk.known == len(sequence.tokens) or not chunk.samples
        keys = list(PrefixKeys("all", 4).of(sequence.tokens, 0, sequence.published))
        found = allocator.find(keys)
        assert len(found) == sequence.published, "a key is of tokens that were accepted"
