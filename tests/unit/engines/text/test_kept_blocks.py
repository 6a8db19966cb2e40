"""Blocks that are kept in RAM: the least recently used go first, and what is half written is not
found by the next process."""

import mmap
import random
from collections import OrderedDict

import pytest
import torch

from workers.engines.text.kept_blocks import KeptBlocks

_BYTES = 64
_SLOTS = 5
_SIZE = _SLOTS * (_BYTES + 32) + 32 + 2 * mmap.PAGESIZE
MARK = b"m" * 32


def block(number: int) -> torch.Tensor:
    return torch.full((_BYTES,), number % 251, dtype=torch.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_kept_blocks_are_the_most_recently_used_also_for_the_next_process() -> None:
    chance = random.Random(3)
    memory = mmap.mmap(-1, _SIZE)
    kept = KeptBlocks(memory, _BYTES, MARK)
    assert kept.slots == _SLOTS
    model: OrderedDict[int, None] = OrderedDict()
    for step in range(2000):
        number = chance.randrange(12)
        if step % 300 == 299:
            kept = KeptBlocks(memory, _BYTES, MARK)
        if chance.random() < 0.5:
            kept.put(key(number), block(number))
            model[number] = None
        else:
            assert kept.touch(key(number)) == (number in model)
        if number in model:
            model.move_to_end(number)
        while len(model) > _SLOTS:
            model.popitem(last=False)
        assert len(kept) == len(model)
        assert {each for each in range(12) if key(each) in kept} == set(model)
    for number in model:
        held = kept.get(key(number))
        assert held is not None
        assert torch.equal(held, block(number))
    assert kept.get(key(99)) is None


def test_kept_blocks_of_another_mark_are_forgotten() -> None:
    memory = mmap.mmap(-1, _SIZE)
    KeptBlocks(memory, _BYTES, MARK).put(key(1), block(1))
    assert len(KeptBlocks(memory, _BYTES, MARK)) == 1
    assert len(KeptBlocks(memory, _BYTES, b"n" * 32)) == 0
    assert len(KeptBlocks(memory, _BYTES, MARK)) == 0


def test_kept_block_that_was_being_written_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ended between the entry that is bad and the one that is good."""
    memory = mmap.mmap(-1, _SIZE)
    kept = KeptBlocks(memory, _BYTES, MARK)
    for number in range(_SLOTS):
        kept.put(key(number), block(number))
    monkeypatch.setattr(kept, "_use", lambda *_: None)
    kept.put(key(9), block(9))
    found = KeptBlocks(memory, _BYTES, MARK)
    assert [number for number in range(10) if key(number) in found] == [1, 2, 3, 4]


def test_kept_blocks_of_an_owner_are_not_pushed_out_by_another_s_flood() -> None:
    memory = mmap.mmap(-1, _SIZE)
    kept = KeptBlocks(memory, _BYTES, MARK)
    for number in (1, 2):
        kept.put(key(number), block(number), "modest")
    for number in range(10, 18):
        if number == 14:
            kept = KeptBlocks(memory, _BYTES, MARK)  # the next process knows whose they are
        kept.put(key(number), block(number), "greedy")
    assert [number for number in range(20) if key(number) in kept] == [1, 2, 15, 16, 17]


def test_kept_blocks_need_room_for_one() -> None:
    with pytest.raises(ValueError, match="too small"):
        KeptBlocks(mmap.mmap(-1, 2 * mmap.PAGESIZE), _BYTES, MARK)


def test_kept_blocks_outlive_numbers_that_a_worker_has_made_up() -> None:
    memory = mmap.mmap(-1, _SIZE)
    KeptBlocks(memory, _BYTES, MARK).put(key(1), block(1))
    memory[len(MARK) + 24 : len(MARK) + 32] = b"\xff" * 8  # when it was used last
    for _ in range(2):
        kept = KeptBlocks(memory, _BYTES, MARK)
        assert kept.touch(key(1))
        kept.put(key(2), block(2))
