"""Blobs: contents by their hash, shared by links, and never shared once they may have changed."""

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_store.blobs import Blobs
from model_store.manifest import FileEntry

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHA1 = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def taken(blobs: Blobs, git_sha1: str | None = None) -> Path:
    return blobs.take(written(blobs.folder.parent / "download"), SHA256, git_sha1)


def written(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_blob_is_found_by_both_hashes(blobs: Blobs, tmp_path: Path) -> None:
    assert blobs.find(SHA256) is None
    assert blobs.find_git(SHA1) is None
    blob = taken(blobs, SHA1)
    assert not (tmp_path / "download").exists()
    for each in (blobs, Blobs(tmp_path)):
        assert each.find(SHA256) == each.find_git(SHA1) == blob
    assert blob.relative_to(tmp_path) == Path(".blobs", SHA256[:2], SHA256)
    assert blob.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "..", "../" * 3 + "etc", SHA256.upper(), SHA256 + "\n"])
def test_blob_is_named_by_a_hash_and_nothing_else(blobs: Blobs, name: str) -> None:
    taken(blobs)
    assert blobs.find(name) is None
    assert blobs.find_git(name) is None


def test_blob_that_models_share_stays_when_its_content_comes_again(
    blobs: Blobs, tmp_path: Path
) -> None:
    blob = taken(blobs)
    blobs.link(SHA256, tmp_path / "model/file")
    assert taken(blobs).samefile(tmp_path / "model/file")
    with pytest.raises(FileExistsError):
        blobs.link(SHA256, tmp_path / "model/file")
    assert blobs.drop(SHA256) == 0
    (tmp_path / "model/file").unlink()
    assert blobs.drop(SHA256) == len(CONTENT)
    assert not blob.exists()
    with pytest.raises(FileNotFoundError):
        blobs.link(SHA256, tmp_path / "model/file")


def test_blob_is_copied_where_there_are_no_links(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(blobs)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    blobs.link(SHA256, tmp_path / "model/file")
    assert (tmp_path / "model/file").read_bytes() == CONTENT
    entry = FileEntry("file", len(CONTENT), SHA256, 1)
    assert blobs.share(tmp_path / "model/file", entry) == entry
    assert blobs.find(SHA256) is None  # the model's copy is enough


@pytest.mark.parametrize("same_process", [True, False])
def test_blob_that_was_written_to_is_no_blob_any_more(
    blobs: Blobs, tmp_path: Path, same_process: bool
) -> None:
    blobs.link(SHA256, tmp_path / "model/file") if taken(blobs) else None
    (tmp_path / "model/file").write_bytes(b"WEIGHTS")
    if not same_process:
        blobs = Blobs(tmp_path)
    assert blobs.find(SHA256) is None
    assert not blobs.path(SHA256).exists()
    assert (tmp_path / "model/file").exists()


def test_blob_that_was_only_touched_is_read_and_found(blobs: Blobs) -> None:
    os.utime(taken(blobs), (1, 1))
    assert blobs.find(SHA256) is not None


def holding(tmp_path: Path, path: Path, **changes: int) -> Blobs:
    """Return the blobs of a store with one model, whose file is ``path``."""
    found = path.stat()
    entry = FileEntry("file", found.st_size, SHA256, changes.get("mtime_ns", found.st_mtime_ns))

    def holders(sha256: str) -> Iterator[tuple[Path, FileEntry]]:
        if sha256 == SHA256:
            yield path, entry

    return Blobs(tmp_path, holders)


def test_blob_of_a_store_without_blobs_is_its_model_s_file(tmp_path: Path) -> None:
    file = written(tmp_path / "model/file")
    blob = holding(tmp_path, file).find(SHA256)
    assert blob is not None
    assert blob.samefile(file)


def test_blob_of_a_store_without_blobs_is_made_once_by_many_at_once(tmp_path: Path) -> None:
    file = written(tmp_path / "model/file")
    stores = [holding(tmp_path, file) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda blobs: blobs.find(SHA256), stores))
    assert set(found) == {stores[0].path(SHA256)}
    assert file.stat().st_nlink == 2


def test_blob_is_not_made_of_a_file_that_has_changed(tmp_path: Path) -> None:
    file = written(tmp_path / "model/file")
    assert holding(tmp_path, file, mtime_ns=5).find(SHA256) is None
    assert holding(tmp_path, file, mtime_ns=0).find(SHA256) is None  # its time is not known
    damaged = holding(tmp_path, written(file, b"WEIGHTS"))
    assert damaged.find(SHA256) is None  # of the same size and, by chance, time
    os.link(file, tmp_path / "outside")
    assert damaged.copied(SHA256) is None  # it is hashed while it is copied
    assert list(damaged.path(SHA256).parent.iterdir()) == []


def test_blob_is_a_copy_of_a_file_that_others_may_write_to(tmp_path: Path) -> None:
    file = written(tmp_path / "model/file")
    os.link(file, tmp_path / "outside")
    blobs = holding(tmp_path, file)
    assert blobs.find(SHA256) is None
    blob = blobs.copied(SHA256)
    assert blob is not None
    assert not blob.samefile(file)
    written(tmp_path / "outside", b"WEIGHTS")
    assert blobs.find(SHA256) == blob


def test_blob_of_a_new_model_s_file_is_the_one_that_is_there(blobs: Blobs, tmp_path: Path) -> None:
    """A file that is linked from outside becomes no blob, but is exchanged for one."""
    own, foreign = (written(tmp_path / name / "file") for name in ("own", "foreign"))
    os.link(foreign, tmp_path / "outside")
    entry = FileEntry("file", len(CONTENT), SHA256, foreign.stat().st_mtime_ns)
    assert blobs.share(foreign, entry) == entry
    assert blobs.find(SHA256) is None
    blobs.share(own, entry)
    assert blobs.path(SHA256).samefile(own)
    assert blobs.share(foreign, entry).mtime_ns == own.stat().st_mtime_ns
    assert foreign.samefile(own)
    assert (tmp_path / "outside").exists()
