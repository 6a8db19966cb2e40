"""Copies of prefixes between a card and RAM, by stand-ins for the card's events: who waits."""

import mmap
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from workers.engines.text import prefix_ram
from workers.engines.text.kept_blocks import KeptBlocks
from workers.engines.text.prefix_ram import PrefixRam

_BYTES = 8
_BLOCKS = 200


class Event:
    """Stands for a point in the card's work that is reached only when it is waited for."""

    waits = 0

    def record(self) -> None:
        """Do nothing: what was queued before it is not computed."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        Event.waits += 1


class Card:
    """Stands for a cache on a card: block n is full of n."""

    block_bytes = _BYTES
    layout = "test"
    on_card = True

    def __init__(self) -> None:
        self.pages = torch.arange(_BLOCKS, dtype=torch.uint8)[:, None].repeat(1, _BYTES)

    def copy_out(self, blocks: Sequence[int]) -> Tensor:
        return self.pages[list(blocks)].clone()

    def copy_in(self, blocks: Sequence[int], contents: Tensor) -> None:
        self.pages[list(blocks)] = contents


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    Event.waits = 0
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(
        prefix_ram, "_pinned", lambda *shape: torch.zeros(*shape, dtype=torch.uint8)
    )
    return Card()


def opened(card: Card) -> PrefixRam:
    memory = mmap.mmap(-1, _BLOCKS * (_BYTES + 32) + 3 * mmap.PAGESIZE)
    return PrefixRam(KeptBlocks(memory, _BYTES, b"m" * 32), card)


def named(*blocks: int) -> list[tuple[int, bytes, str]]:
    return [(block, block.to_bytes(16, "little"), "owner") for block in blocks]


def test_blocks_that_steps_give_up_one_by_one_hold_up_no_step(card: Card) -> None:
    """A wait for a copy is one for the step before it, and steps were to overlap."""
    ram = opened(card)
    for block in range(64):
        ram.leave(named(block))
    assert Event.waits == 0
    ram.leave(named(*range(64, 67)))
    assert Event.waits == 3, "the oldest, for as many as came: not all"
    ram.close()
    assert all(ram.has(key) for _, key, _ in named(*range(67)))


def test_blocks_that_come_back_are_waited_for_only_beyond_a_few_copies(card: Card) -> None:
    ram = opened(card)
    leaving = named(*range(100))
    ram.leave(leaving)
    ram.close()
    card.pages.zero_()
    Event.waits = 0
    assert ram.restore(range(64), [key for _, key, _ in leaving[:64]]) == 64
    assert Event.waits == 0
    assert ram.restore(range(64, 100), [key for _, key, _ in leaving[64:]]) == 36
    assert Event.waits == 3
    assert torch.equal(card.pages[:100], Card().pages[:100])
