"""Bytes that a load reads from storage are counted, cached ones are not."""

import os
from pathlib import Path

import pytest

from model_store.page_cache import PageCache
from workers.process import storage_bytes

SIZE = 8 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Provide a file that is on the disk; skip where files have no disk, or reads are not
    counted."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(SIZE))
    drop(path)
    before = storage_bytes()
    path.read_bytes()
    if storage_bytes() - before < SIZE // 2:
        pytest.skip("this file system does not read from storage")
    drop(path)
    return path


def drop(path: Path) -> None:
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_storage_bytes_count_a_first_read_and_no_second(file: Path) -> None:
    before = storage_bytes()
    file.read_bytes()
    first = storage_bytes()
    file.read_bytes()
    assert first - before >= SIZE
    assert storage_bytes() == first


def test_page_cache_tells_what_it_read_from_storage(file: Path) -> None:
    cache = PageCache(10 * SIZE)
    assert cache.keep("m", file.parent) >= SIZE
    assert cache.keep("m", file.parent) < SIZE // 2
