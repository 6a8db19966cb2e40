"""RAM that outlives workers: whose it is, and when it is freed."""

import mmap
import os
from collections.abc import Iterator

import pytest

from workers.kept_memory import KeptMemory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
SIZE = 64 * mmap.PAGESIZE


class Machine:
    total = 1000
    free = 1000


@pytest.fixture
def kept() -> Iterator[KeptMemory]:
    memory = KeptMemory(Machine.total, lambda: Machine.free)
    yield memory
    memory.close()
    Machine.free = Machine.total


def write(fd: int, text: bytes) -> None:
    with mmap.mmap(fd, SIZE) as memory:
        memory[: len(text)] = text


def read(fd: int) -> bytes:
    with mmap.mmap(fd, SIZE) as memory:
        return memory[:4]


def test_kept_memory_is_found_by_the_next_worker_of_its_model_only(kept: KeptMemory) -> None:
    first = kept.take("a", SIZE)
    assert first is not None
    write(first.fd, b"once")
    second = kept.take("a", SIZE)  # another replica, beside the first
    assert second is not None
    assert read(second.fd) == bytes(4)
    kept.give_back(first)
    other = kept.take("b", SIZE)
    assert other is not None
    assert read(other.fd) == bytes(4)
    again = kept.take("a", SIZE)
    assert again is first
    assert read(again.fd) == b"once"
    for each in (again, second, other):
        kept.give_back(each)


def test_kept_memory_of_another_size_is_made_again(kept: KeptMemory) -> None:
    first = kept.take("a", SIZE)
    assert first is not None
    write(first.fd, b"once")
    kept.give_back(first)
    larger = kept.take("a", 2 * SIZE)
    assert larger is not None
    assert kept.unused_bytes() == 0
    with mmap.mmap(larger.fd, 2 * SIZE) as memory:
        assert memory[:4] == bytes(4)
    kept.give_back(larger)


def test_kept_memory_is_freed_where_ram_is_short_or_its_model_is_gone(kept: KeptMemory) -> None:
    pieces = [kept.take(model, SIZE) for model in "abc"]
    for piece in pieces:
        assert piece is not None
        write(piece.fd, b"once")
        kept.give_back(piece)
    all_of_it = kept.unused_bytes()
    assert all_of_it >= 3 * mmap.PAGESIZE
    kept.relieve()
    assert kept.unused_bytes() == all_of_it
    kept.keep_only({"a", "b"})
    assert kept.unused_bytes() == all_of_it * 2 // 3
    Machine.free = Machine.total // 20
    kept.relieve()
    assert kept.unused_bytes() == 0


def test_kept_memory_cannot_be_cut_by_a_worker(kept: KeptMemory) -> None:
    """A worker that was broken into would end the next one, whose memory is gone under it."""
    piece = kept.take("a", SIZE)
    assert piece is not None
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(piece.fd, 0)
    kept.give_back(piece)
