"""Fair LRU: free blocks are evicted by age, but not those of an owner of few."""

import random
from collections import Counter

import pytest

from workers.engines.text.blocks import BlockAllocator
from workers.engines.text.fair_lru import FairLru


def test_eviction_of_a_flood_spares_what_others_hold() -> None:
    """One owner asks for ten times the cache; another's few blocks stay, for a while."""
    allocator = BlockAllocator(20, 4)
    modest = allocator.allocate(4)
    for number, block in enumerate(modest):
        allocator.publish(block, b"modest %d" % number, "modest")
    allocator.release(modest)
    spared = []
    for number in range(200):
        (block,) = allocator.allocate(1)
        allocator.publish(block, b"flood %d" % number, "flood")
        allocator.release([block])
        spared.append(len(allocator.find(b"modest %d" % each for each in range(4))))
    assert spared[79] == 4, "four times the blocks there are"
    assert spared[-1] == 0, "no key keeps unused blocks for ever"
    assert allocator.books() == {"free": 20, "used": 0, "total": 20}


def test_eviction_among_equals_takes_the_longest_unused() -> None:
    order = FairLru(6)
    for block, owner in enumerate("abcabc"):
        order.add(block, owner)
    assert [order.pop() for _ in range(3)] == [0, 1, 2]
    order.remove(3)
    order.add(3, "a")
    assert [order.pop() for _ in range(3)] == [4, 5, 3]
    with pytest.raises(StopIteration):
        order.pop()


@pytest.mark.parametrize("seed", range(4))
def test_eviction_always_knows_who_holds_most(seed: int) -> None:
    """Random play beside plain counting: a modest owner's block goes only when it is old."""
    chance = random.Random(seed)
    order = FairLru(30)
    owners: dict[int, str] = {}
    came: dict[int, int] = {}
    pops = 0
    for block in range(3000):
        order.add(block, owner := chance.choice("aaaaaabbc"))
        owners[block], came[block] = owner, pops
        if chance.random() < 0.2:
            gone = chance.choice(list(owners))
            order.remove(gone)
            del owners[gone]
        while len(owners) > 30:
            held = Counter(owners.values())
            lost = order.pop()
            mine = [each for each, whose in owners.items() if whose == owners[lost]]
            assert lost == min(mine), "of one owner the longest unused"
            modest = held[owners[lost]] * len(held) <= len(owners)
            equal = held[owners[lost]] == max(held.values())
            assert not modest or equal or pops - came[lost] >= 120
            del owners[lost]
            pops += 1
        assert len(order) == len(owners)
        assert all(each in order for each in owners)
