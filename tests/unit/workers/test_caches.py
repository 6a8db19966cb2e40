"""Compilers' caches: they are bounded, and names that a worker made are not followed."""

import os
from pathlib import Path

import pytest

from workers.caches import ModelCaches

KB = 1024


def fill(root: Path, cache: str, size: int, used: float) -> Path:
    """Put a file of this size into a cache, as deep as compilers put theirs."""
    path = root / cache / "ab" / "kernel.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    os.utime(path, (used, used))
    os.utime(path.parent, (used, used))
    return path


def test_caches_within_the_bound_stay(tmp_path: Path) -> None:
    files = [fill(tmp_path, f"{model}/triton", 8 * KB, 1) for model in ("a", "b")]
    ModelCaches(tmp_path, 100 * KB).clean({"a", "b"})
    assert all(path.exists() for path in files)


def test_caches_above_the_bound_go_from_the_model_that_holds_most_oldest_first(
    tmp_path: Path,
) -> None:
    small = fill(tmp_path, "small/triton", 16 * KB, 1)
    old = fill(tmp_path, "large/torchinductor", 60 * KB, 100)
    new = fill(tmp_path, "large/triton", 60 * KB, 200)
    ModelCaches(tmp_path, 120 * KB).clean({"small", "large"})
    assert small.exists()
    assert new.exists()
    assert not old.exists()
    # A worker that runs may go on to write there, and nowhere else: the folder itself stays.
    assert list((tmp_path / "large" / "torchinductor").iterdir()) == []


def test_cache_that_was_read_lately_is_not_old(tmp_path: Path) -> None:
    read = fill(tmp_path, "m/torchinductor", 60 * KB, 100)
    other = fill(tmp_path, "m/triton", 60 * KB, 200)
    os.utime(read, (300, 100))
    ModelCaches(tmp_path, 100 * KB).clean({"m"})
    assert read.exists()
    assert not other.exists()


def test_caches_of_models_that_are_gone_go(tmp_path: Path) -> None:
    fill(tmp_path, "gone/triton", KB, 1)
    kept = fill(tmp_path, "here/triton", KB, 1)
    ModelCaches(tmp_path, 100 * KB).clean({"here"})
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    ModelCaches(tmp_path, 100 * KB).clean(set())  # the disk of the models is not there
    assert kept.exists()


@pytest.mark.parametrize("at", ["here/triton/link", "here/triton/ab/link", "here/link", "link"])
def test_caches_are_not_left_by_links(tmp_path: Path, at: str) -> None:
    root = tmp_path / "cache"
    secret = tmp_path / "models" / "m" / "weights"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(bytes(200 * KB))
    made = fill(root, "here/triton", 60 * KB, 1)
    link = root / at
    link.symlink_to(secret.parent)
    ModelCaches(root, 40 * KB).clean({"here"})
    assert not made.exists()
    assert secret.exists()


def test_caches_that_are_not_there_or_cannot_be_read_are_no_fault(tmp_path: Path) -> None:
    ModelCaches(tmp_path / "none", 1).clean({"m"})
    (tmp_path / "file").write_bytes(b"")
    ModelCaches(tmp_path, 1).clean({"m"})
    assert (tmp_path / "file").exists()
