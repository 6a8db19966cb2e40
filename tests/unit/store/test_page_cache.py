"""Page cache: our counts, and the kernel's of the files' pages."""

import ctypes
import errno
import mmap
import os
import sys
import threading
from pathlib import Path

import pytest

from model_store.page_cache import PageCache, _Kept, _read, budget, give_back
from tests.support.wait import eventually

SIZE = 1_000_000
PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel with mincore")


def model(tmp_path: Path, name: str, *sizes: int) -> Path:
    """Return a model's folder, with weights of so many bytes in parts of their own."""
    folder = tmp_path / name
    for number, size in enumerate(sizes):
        part = folder / f"part{number}"
        part.mkdir(parents=True)
        with (part / "model.safetensors").open("wb") as file:
            file.write(os.urandom(size))
            os.fsync(file.fileno())
    (folder / "config.json").write_text("{}" * SIZE)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def model_state(path: Path) -> float:
    """Return the share of a file's pages that are in RAM."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    # A private writable mapping, for from_buffer refuses one that is read-only.
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as area:
        pages = (ctypes.c_ubyte * (-(-size // PAGE)))()
        start = ctypes.c_char.from_buffer(area)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
        )
        assert not failed, errno.errorcode[ctypes.get_errno()]
        del start
        return sum(page & 1 for page in pages) / len(pages)


def evicted(*paths: Path) -> None:
    """Take files out of RAM; skips where that cannot be (they lie in a tmpfs, say)."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
        if model_state(path) > 0.5:
            pytest.skip("this file system keeps its pages")


def test_page_cache_budget_is_a_quarter_of_the_ram_unless_it_is_set() -> None:
    assert budget(None, 1000) == 250
    assert budget(0, 1000) == 0
    assert budget(7, 1000) == 7


@linux
def test_page_cache_keeps_files_in_ram(tmp_path: Path) -> None:
    folder = model(tmp_path, "a", SIZE, 20 * SIZE)
    evicted(*files(folder))
    cache = PageCache(30 * SIZE)
    cache.keep("a", folder)
    assert cache.held == {"a": 21 * SIZE}
    assert [model_state(path) for path in files(folder)] == [1, 1]


@linux
def test_page_cache_gives_pages_of_displaced_models_back_and_leaves_those_of_dropped_ones(
    tmp_path: Path,
) -> None:
    one, two = model(tmp_path, "one", SIZE), model(tmp_path, "two", SIZE)
    evicted(*files(one), *files(two))
    cache = PageCache(SIZE)
    cache.keep("one", one)
    cache.drop("one")
    assert model_state(files(one)[0]) == 1
    cache.keep("one", one)
    cache.keep("two", two)
    assert cache.held == {"two": SIZE}
    assert model_state(files(one)[0]) == 0
    assert model_state(files(two)[0]) == 1


def test_page_cache_drops_the_least_recently_kept_first(tmp_path: Path) -> None:
    folders = {name: model(tmp_path, name, SIZE) for name in "abcd"}
    cache = PageCache(3 * SIZE)
    for name in "abca":
        cache.keep(name, folders[name])
    assert list(cache.held) == ["b", "c", "a"]
    cache.keep("d", folders["d"])
    assert list(cache.held) == ["c", "a", "d"]
    cache.keep("e", model(tmp_path, "e", 2 * SIZE, SIZE))
    assert list(cache.held) == ["e"]


def test_page_cache_does_not_keep_a_model_larger_than_the_budget(tmp_path: Path) -> None:
    cache = PageCache(2 * SIZE)
    cache.keep("small", model(tmp_path, "small", SIZE))
    cache.keep("large", model(tmp_path, "large", 2 * SIZE, 1))
    assert cache.held == {"small": SIZE}


def test_page_cache_drops_a_model_that_outgrew_the_budget(tmp_path: Path) -> None:
    folder = model(tmp_path, "a", SIZE)
    cache = PageCache(SIZE)
    cache.keep("a", folder)
    with files(folder)[0].open("ab") as file:
        file.write(b"more")
    cache.keep("a", folder)
    assert cache.held == {}


def test_page_cache_with_a_budget_of_nothing_keeps_nothing(tmp_path: Path) -> None:
    cache = PageCache(0)
    cache.keep("a", model(tmp_path, "a", 1))
    cache.keep("empty", model(tmp_path, "empty", 0))
    assert cache.held == {}


def test_page_cache_passes_over_files_that_cannot_be_read(tmp_path: Path) -> None:
    cache = PageCache(10 * SIZE)
    cache.keep("missing", tmp_path / "missing")
    folder = model(tmp_path, "a", SIZE)
    (folder / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    cache.keep("a", folder)
    assert cache.held == {"a": SIZE}
    cache.drop("never seen")


def test_page_cache_takes_a_file_that_is_shorter_than_it_was(tmp_path: Path) -> None:
    """Its size is taken first, and it may be cut off before it is read to the end."""
    (path,) = files(model(tmp_path, "a", SIZE))
    kept = _Kept([(path, 50 * SIZE)], 50 * SIZE)
    assert _read(path, 50 * SIZE, kept) == SIZE
    path.unlink()
    assert _read(path, 50 * SIZE, kept) == 0


def test_page_cache_forgets_a_removed_model_when_it_is_kept_again(tmp_path: Path) -> None:
    folder = model(tmp_path, "a", SIZE)
    cache = PageCache(SIZE)
    cache.keep("a", folder)
    files(folder)[0].unlink()
    cache.keep("a", folder)
    assert cache.held == {}
    cache.keep("b", model(tmp_path, "b", SIZE))
    assert list(cache.held) == ["b"]


def test_page_cache_stays_within_the_budget_in_many_threads(tmp_path: Path) -> None:
    folders = [model(tmp_path, str(number), SIZE) for number in range(6)]
    cache = PageCache(3 * SIZE)
    most = []

    def work(number: int) -> None:
        for turn in range(30):
            cache.keep(str((number + turn) % 6), folders[(number + turn) % 6])
            if turn % 7 == number:
                cache.drop(str(turn % 6))
            most.append(sum(cache.held.values()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 120
    assert max(most) <= 3 * SIZE


def test_page_cache_close_drops_all_and_ends_what_is_under_way(tmp_path: Path) -> None:
    cache = PageCache(200 * SIZE)
    cache.keep("a", model(tmp_path, "a", SIZE))
    large = model(tmp_path, "large", 100 * SIZE)
    thread = threading.Thread(target=cache.keep, args=("large", large))
    thread.start()
    cache.close()
    eventually(lambda: not thread.is_alive())
    cache.keep("a", tmp_path / "a")
    assert cache.held == {}


@linux
def test_pages_of_a_loaded_model_are_given_back_where_cards_share_the_memory(
    tmp_path: Path,
) -> None:
    folder = model(tmp_path, "a", SIZE, SIZE)
    evicted(*files(folder))
    PageCache(10 * SIZE).keep("a", folder)
    assert all(model_state(path) == 1.0 for path in files(folder))
    give_back(folder)
    assert all(model_state(path) < 0.1 for path in files(folder))
    give_back(tmp_path / "none")
