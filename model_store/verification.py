"""Reads models' files, tells what differs from their manifests, and puts whole ones in their place.

Models share files: a damaged one damages each of them, and is read once for all of them.
"""

import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from model_store.hashes import sha256_of
from model_store.inspection import refreshed
from model_store.manifest import FACTS, FILES, FileEntry, Manifest, write_manifest
from model_store.progress import Counter, Progress

if TYPE_CHECKING:
    from model_store.store import ModelStore

#: the file is not there, not listed, cannot be read, has another length, or other bytes
What = Literal["missing", "new", "unreadable", "size", "content"]
_Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """Names a file of a model that is not what the manifest says."""

    path: str
    what: What
    shared_with: tuple[str, ...] = ()  #: the other models that have this very file


def differences(
    store: "ModelStore", names: Sequence[str], progress: Progress | None = None
) -> dict[str, list[Difference]]:
    """Return what differs in each of these models, by name; an empty list for a whole one.

    Where nothing does, the files as they are now pass ``ModelStore.check``. Raises UnknownModel.
    """
    # As they are on the disk: in memory, an adapter's is joined with its base's.
    manifests = [store.read(name) for name in names]
    reader = _Reader(manifests, progress)
    return {each.name: _compare(store, each, reader) for each in manifests}


class _Reader:
    """Hashes each file once, however many models have it."""

    def __init__(self, manifests: Sequence[Manifest], progress: Progress | None) -> None:
        sizes = {_told_as(each, entry): entry.size for each in manifests for entry in each.files}
        self._counter = Counter(progress, sizes)
        self._seen: dict[_Inode, str] = {}

    def what_differs(self, path: Path, entry: FileEntry, name: str) -> What | None:
        """Return what differs of a file, whose progress is told under a name."""
        try:
            if not path.is_file():
                return "missing"
            found = path.stat()
            if found.st_size != entry.size:
                return "size"
            inode = (found.st_dev, found.st_ino)
            if inode not in self._seen:
                self._seen[inode] = sha256_of(path, name, self._counter)
            else:
                self._counter.add(name, entry.size)
        except OSError:
            return "unreadable"  # a disk that fails to read it: the very thing that is asked
        return None if self._seen[inode] == entry.sha256 else "content"


def _told_as(manifest: Manifest, entry: FileEntry) -> str:
    return f"{manifest.name}/{entry.path}"


def _compare(store: "ModelStore", manifest: Manifest, reader: _Reader) -> list[Difference]:
    files = store.path(manifest.name)
    # Looked at before they are read: what changes meanwhile is noticed later.
    entries = tuple(stamped(files, entry) for entry in manifest.files)
    found = []
    for entry in entries:
        if what := reader.what_differs(files / entry.path, entry, _told_as(manifest, entry)):
            others = {name for name, _ in _sharing(store, files / entry.path, entry)}
            found.append(Difference(entry.path, what, tuple(sorted(others - {manifest.name}))))
    listed = {entry.path for entry in entries}
    there = (str(path.relative_to(files)) for path in files.rglob("*") if not path.is_dir())
    found += [Difference(path, "new") for path in there if path not in listed]
    if not found and (entries != manifest.files or manifest.facts < FACTS):
        changed = msgspec.structs.replace(manifest, files=entries)
        with suppress(OSError):  # a store that may only be read
            rewrite(store, refreshed(files, changed))
    return sorted(found, key=lambda each: each.path)


def stamped(folder: Path, entry: FileEntry) -> FileEntry:
    """Return the entry with the time that its file has now, if it is there."""
    try:
        now = (folder / entry.path).stat().st_mtime_ns
    except OSError:
        return entry
    return msgspec.structs.replace(entry, mtime_ns=now)


def is_elsewhere(store: "ModelStore", name: str, entry: FileEntry) -> bool:
    """Make the content of a model's damaged file a blob, if another file of the store has it whole.

    Returns False if none has. A blob that is the damaged file itself is removed: the file stays,
    and nothing takes it for whole any more. Raises NoSpace or OSError.
    """
    own = _inode(store.path(name) / entry.path)
    blobs = store.blobs
    if own is not None and _inode(blobs.path(entry.sha256)) == own:
        blobs.discard(entry.sha256)
    inodes = (_inode(path) for path in _holders(store, entry.sha256))
    if not blobs.path(entry.sha256).exists() and all(each in (None, own) for each in inodes):
        return False
    return (blobs.find(entry.sha256) or blobs.copied(entry.sha256)) is not None


def mend(store: "ModelStore", name: str, digests: Collection[str]) -> None:
    """Put the blobs of these contents in the place of a model's files that have others.

    Raises UnknownModel, NoSpace or OSError.
    """
    manifest, files = store.read(name), store.path(name)
    entries = []
    for entry in manifest.files:
        path, blob = files / entry.path, None
        if entry.sha256 in digests:
            blob = store.blobs.find(entry.sha256) or store.blobs.copied(entry.sha256)
        if blob is not None and _inode(blob) != _inode(path):
            draft = store.partial / f"draft-{secrets.token_hex(6)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            store.blobs.link(entry.sha256, draft)
            draft.replace(path)
            entries.append(stamped(files, entry))
        else:
            entries.append(entry)
    if tuple(entries) != manifest.files:
        rewrite(store, msgspec.structs.replace(manifest, files=tuple(entries)))


def _holders(store: "ModelStore", sha256: str) -> Iterator[Path]:
    """Yield the models' files that had this content when they were taken in."""
    for manifest in store.list():
        files = store.folder(manifest.name) / FILES
        yield from (files / each.path for each in manifest.files if each.sha256 == sha256)


def _sharing(store: "ModelStore", path: Path, entry: FileEntry) -> Iterator[tuple[str, Path]]:
    """Yield the models that have the very file at this path under some name, and where."""
    own = _inode(path)
    for manifest in store.list() if own is not None else ():
        files = store.folder(manifest.name) / FILES
        for each in manifest.files:
            if each.sha256 == entry.sha256 and _inode(files / each.path) == own:
                yield manifest.name, files / each.path


def _inode(path: Path) -> _Inode | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def rewrite(store: "ModelStore", manifest: Manifest) -> None:
    """Write a model's manifest again. Raises OSError."""
    write_manifest(store.folder(manifest.name), manifest)
    os.utime(store.root)  # so that a server that lists from memory looks again
