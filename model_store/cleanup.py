"""Finds what may be removed from a store, says why, and removes it.

Three kinds: what nothing needs (blobs, left-over drafts), downloads that were not resumed, and, if
the store may only take so many bytes, the models that were not used for longest.
"""

import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_store.blobs import GIT
from model_store.disk import unavailable
from model_store.errors import StoreError
from model_store.locks import LOCK, lock
from model_store.manifest import FILES
from model_store.places import ASIDE, PARTIAL, recover
from model_store.records import care_of, usage_of

if TYPE_CHECKING:
    from model_store.store import ModelStore

DRAFT_SECONDS = 60  #: a folder is made a moment before it is locked
_BLOB = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LEFT = ("draft-", "removed-")  #: of work that a crash interrupted
_Inode = tuple[int, int]

Kind = Literal["draft", "partial", "blob", "model"]


@dataclass(frozen=True, slots=True)
class Removal:
    """Describes an entry to remove, with the bytes that it frees and the reason."""

    kind: Kind
    name: str  #: of the model, else of the file or folder
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """Describes a model that may go under a budget.

    It tells the files that the model holds: inode and bytes of each.
    """

    name: str
    last_used_at: datetime
    files: dict[_Inode, int]


def never(name: str) -> bool:  # noqa: ARG001  one of several predicates
    return False


def plan(
    store: "ModelStore",
    *,
    partials_kept: float,
    max_bytes: int | None = None,
    in_use: Callable[[str], bool] = never,
) -> list[Removal]:
    """Say what would be removed.

    ``partials_kept``: seconds for which downloads and blobs that no model has are kept.
    ``max_bytes`` of the store; ``in_use`` says which models stay, besides pinned ones.
    Raises StoreUnavailable.
    """
    partial = store.root / PARTIAL
    try:
        recover(store.root, partial)
        store.listing.refresh()
        found = [
            *_left_over(partial, partials_kept),
            *_drafts(store),
            *_blobs(store, partials_kept),
        ]
        if max_bytes is None:
            return found
        taken, candidates = _models(store, in_use)
        return [*found, *evicted(candidates, taken, max_bytes)]
    except OSError as error:
        raise unavailable("read", error) from error


def carry_out(
    store: "ModelStore", removals: Iterable[Removal], in_use: Callable[[str], bool] = never
) -> list[Removal]:
    """Remove these things; return those that went. What is in use by now stays."""
    gone = [each for each in removals if _remove(store, each, in_use)]
    for link in (store.blobs.folder / GIT).glob("*/*"):
        if link.is_symlink() and not link.exists():  # its blob went with a model
            with suppress(OSError):
                link.unlink()
    return gone


def evicted(
    candidates: Collection[Candidate], taken: dict[_Inode, int], max_bytes: int
) -> list[Removal]:
    """Return the models that go, the least recently used first, until the others fit.

    ``taken`` is all that the store holds; a file goes with the last model that has it.
    """
    left = dict(taken)
    holders: dict[_Inode, int] = {}
    for each in candidates:
        for inode in each.files:
            holders[inode] = holders.get(inode, 0) + 1
    gone = []
    for each in sorted(candidates, key=lambda each: each.last_used_at):
        if sum(left.values()) <= max_bytes:
            break
        freed = 0
        for inode in each.files:
            holders[inode] -= 1
            if holders[inode] == 0:
                freed += left.pop(inode, 0)
        when = each.last_used_at.date().isoformat()
        gone.append(Removal("model", each.name, freed, f"not used since {when}; the store is full"))
    return gone


def _models(
    store: "ModelStore", in_use: Callable[[str], bool]
) -> tuple[dict[_Inode, int], list[Candidate]]:
    """Return the bytes of all models' files, each file once, and the models that may go.

    A file that was linked from outside takes none: it is there without the store, too.
    """
    manifests = store.list()
    found = {each.name: dict(_files(store.folder(each.name) / FILES)) for each in manifests}
    names = Counter(inode for files in found.values() for inode in files)
    names.update(inode for inode, _ in _files(store.blobs.folder))
    names.update(inode for inode, _ in _files(store.adapter_links.folder))
    taken = {
        inode: stat.st_size
        for files in found.values()
        for inode, stat in files.items()
        if stat.st_nlink <= names[inode]
    }
    kept: set[_Inode] = set()
    bases = {each.adapter_of for each in manifests}
    candidates = []
    for manifest in manifests:
        own = {inode: taken[inode] for inode in found[manifest.name] if inode in taken}
        name = manifest.name
        if name in bases or in_use(name) or care_of(store.folder(name)).pinned:
            kept |= own.keys()
        else:
            used = usage_of(store.folder(name)).last_used_at or manifest.created_at
            candidates.append(Candidate(name, used, own))
    for each in candidates:
        for inode in kept & each.files.keys():
            del each.files[inode]
    return taken, candidates


def _files(folder: Path) -> Iterator[tuple[_Inode, os.stat_result]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = Path(parent, name).lstat()
                yield (found.st_dev, found.st_ino), found


def _left_over(partial: Path, kept: float) -> Iterator[Removal]:
    """Yield what crashes left, and the partial downloads that were not resumed within the grace."""
    for path in partial.iterdir() if partial.is_dir() else ():
        with suppress(OSError):  # another process cleans up too
            if path.name.startswith(ASIDE):
                continue  # a model that is being replaced
            age = time.time() - _last_change(path)
            if age < _kept_seconds(path.name, kept) or _is_locked(path):
                continue  # work may be under way
            if path.name.startswith(_LEFT):
                yield Removal("draft", path.name, _bytes_of(path), "left by a crash")
            else:
                days = f"not resumed for {age / 86400:.0f} days"
                yield Removal("partial", path.name, _bytes_of(path), days)


def _kept_seconds(name: str, kept: float) -> float:
    """Return for how long something under ``.partial`` stays after its last change."""
    if name.startswith("removed-"):
        return -math.inf  # whatever the clock says
    return DRAFT_SECONDS if name.startswith("draft-") else kept


def _drafts(store: "ModelStore") -> Iterator[Removal]:
    """Yield the drafts of manifests and records that crashes left beside models' files."""
    for manifest in store.list():
        folder = store.folder(manifest.name)
        with suppress(OSError):  # another process may remove the model
            for path in folder.glob("*.new"):
                found = path.lstat()
                if time.time() - found.st_mtime > DRAFT_SECONDS:
                    name = f"{folder.name}/{path.name}"
                    yield Removal("draft", name, found.st_size, "left by a crash")


def _blobs(store: "ModelStore", kept: float) -> Iterator[Removal]:
    """Yield the blobs that no model has had within the grace: a download may be under way."""
    listed = {entry.sha256 for manifest in store.list() for entry in manifest.files}
    for path in store.blobs.folder.glob("[0-9a-f][0-9a-f]/*"):
        with suppress(OSError):
            found = path.lstat()
            old = time.time() - found.st_ctime > kept
            if path.name == LOCK:
                continue
            if path.name.startswith("."):
                if time.time() - found.st_mtime > DRAFT_SECONDS:
                    yield Removal("draft", path.name, found.st_size, "left by a crash")
            elif _BLOB.fullmatch(path.name) and path.name not in listed and old:
                freed = found.st_size if found.st_nlink == 1 else 0
                yield Removal("blob", path.name, freed, "no model has it")


def _remove(store: "ModelStore", removal: Removal, in_use: Callable[[str], bool]) -> bool:
    try:
        if removal.kind == "model":
            if in_use(removal.name) or care_of(store.folder(removal.name)).pinned:
                return False
            return store.remove(removal.name, unless_held=True)
        if removal.kind == "blob":
            return _remove_blob(store, removal.name)
        if removal.name.startswith("."):
            (store.blobs.folder / removal.name[1:3] / removal.name).unlink()
            return True
        if "/" in removal.name:
            (store.root / removal.name).unlink()
            return True
        return _remove_unlocked(store.partial / removal.name)
    except (OSError, StoreError):  # gone already, or a store that may only be read
        return False


def _remove_blob(store: "ModelStore", sha256: str) -> bool:
    if any(entry.sha256 == sha256 for each in store.list() for entry in each.files):
        return False
    store.blobs.path(sha256).unlink()
    return True


def _remove_unlocked(path: Path) -> bool:
    """Remove an entry of ``.partial``, unless a process works in it."""
    if (handle := lock(path)) is None:
        return False
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)
    return True


def _is_locked(path: Path) -> bool:
    if (handle := lock(path)) is None:
        return True
    os.close(handle)
    return False


def _last_change(path: Path) -> float:
    return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))


def _bytes_of(path: Path) -> int:
    """Return the bytes that come free with a file or folder: those without other names."""
    found = (each.lstat() for each in (path, *path.rglob("*")) if not each.is_dir())
    return sum(each.st_size for each in found if each.st_nlink == 1)
