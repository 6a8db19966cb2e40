"""Keeps copies of models' files on a node: contents by hash, and folders of hard links to them.

The agents of all gateways on the node use it together. What changes several names at once is
done under the lock of the store; a folder in use is locked as well, and every lock ends with its
process. A folder is kept for the stores of models that it came from, until these have no use for
it or others need its room: those go first that have been unused for longest.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from workers.nodes.messages import MOST_TREES, HeldTree, StoreFacts, Tree
from workers.nodes.models.locks import is_locked, open_lock, try_lock
from workers.nodes.models.parts import NoRoom, Part, sync
from workers.nodes.models.trees import key_of
from workers.protocol.bounds import MOST_BYTES

_LENT, _GONE = "lent-", ".gone-"
_WHOLE = "whole"  #: a file in a folder whose files have all come
#: seconds that changes of others may take: an agent that was stopped would hold all up
_LOCK_SECONDS, _LOCK_PAUSE = 30.0, 0.02
_PART_SECONDS = 7 * 86_400.0  #: that a part is kept which nobody has gone on with
#: of the disk, what stays free: a twentieth, and at most so many bytes
_KEPT_PART, _MOST_KEPT = 20, 1 << 30
_MOST_TOLD = 1 << 19  #: bytes of names in what a gateway is told, which has other facts beside them


@dataclass(eq=False)
class Stay:
    """Holds a folder in use, and the parts of it that this process writes."""

    tree: Tree
    folder: Path
    lock: int
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Return what a worker opens in place of the gateway's folder or file."""
        files = self.folder / "files"
        return files / self.tree.files[0].path if self.tree.is_file else files

    @property
    def size(self) -> int:
        """Return the bytes of its contents, each counted once."""
        return sum(_contents(self.tree).values())

    def close(self) -> None:
        for part in self.parts.values():
            part.close()
        self.parts.clear()
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


class NodeModels:
    """Owns the folder of the copies on this machine. All of it blocks: call it in threads."""

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        """Raises OSError, for a folder that others may write to as well."""
        self.root, self.max_bytes = root, max_bytes
        self._room: int | None = None  #: as it was found last
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
        alone = found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not stat.S_ISDIR(found.st_mode) or not alone:
            raise OSError(f"{root} is no folder that this user alone may write to")
        self._blobs, self._parts, self._trees = (root / n for n in ("blobs", "parts", "trees"))
        for each in (self._blobs, self._parts, self._trees):
            each.mkdir(mode=0o700, exist_ok=True)
        with self._locked():
            self._sweep()

    # ---- for a worker ---------------------------------------------------------------------------

    def begin(self, tree: Tree, origin: str) -> Stay:
        """Hold the folder of these files, with those that are there, and room for the others.

        Raises NoRoom or OSError.
        """
        with self._locked():
            folder = self._trees / key_of(tree.files)
            is_new = not folder.exists()
            (folder / "origins").mkdir(mode=0o700, parents=True, exist_ok=True)
            stay = Stay(tree, folder, open_lock(folder, fcntl.LOCK_SH))
            try:
                (folder / "tree").write_bytes(msgspec.msgpack.encode(tree))
                (folder / "origins" / (origin or "any")).write_text(tree.source)
                self._link(stay.tree, stay.folder)
                for sha256, size in self._lacks(tree).items():
                    if (part := Part.take(self._parts, sha256, size)) is not None:
                        stay.parts[sha256] = part
                self._make_room(stay)
            except BaseException:
                stay.close()
                if is_new:
                    self._remove(folder)
                raise
            return stay

    def claim(self, stay: Stay) -> bool:
        """Take over what others have brought since, and the parts that they have given up; True
        once nothing is missing. Raises NoRoom or OSError."""
        with self._locked():
            self._link(stay.tree, stay.folder)
            missing = self._lacks(stay.tree)
            for sha256, size in missing.items():
                if sha256 not in stay.parts and (part := Part.take(self._parts, sha256, size)):
                    stay.parts[sha256] = part
            if not missing:
                with contextlib.suppress(OSError):  # without it the files serve as well
                    (stay.folder / _WHOLE).touch(mode=0o600)
            return not missing

    def keep(self, stay: Stay, part: Part) -> None:
        """Make a part that is whole a file of its folder. Raises Damaged or OSError."""
        part.check()
        with self._locked():
            part.become(self._blob(part.sha256))
            self._link(stay.tree, stay.folder)
        stay.parts.pop(part.sha256, None)

    def bytes_of(self, stay: Stay) -> int:
        """Return the bytes of its files that are there, those in others' parts among them."""
        found = 0
        for sha256, size in _contents(stay.tree).items():
            if (part := stay.parts.get(sha256)) is not None:
                found += part.have
            elif self._blob(sha256).exists():
                found += size
            else:
                with contextlib.suppress(OSError):
                    found += (self._parts / f"{sha256}.{size}").stat().st_size
        return found

    def end(self, stay: Stay) -> None:
        """Note that a folder is used no longer here. It stays, if it is wanted. Raises OSError."""
        folder = stay.folder
        with contextlib.suppress(OSError):
            os.utime(stay.lock)
        stay.close()
        with self._locked():
            self._remove_unwanted(folder)

    def lend(self) -> Stay:
        """Hold an empty folder, into which files are lent later. Raises OSError."""
        with self._locked():
            folder = self._trees / f"{_LENT}{secrets.token_hex(8)}"
            (folder / "files").mkdir(mode=0o700, parents=True)
            return Stay(Tree(source=_LENT, files=()), folder, open_lock(folder, fcntl.LOCK_SH))

    def add_lent(self, lent: Stay, stay: Stay) -> Path:
        """Lend the files of a folder; return where they are. Raises OSError."""
        target = lent.path / stay.folder.name
        if not target.exists():
            draft = target.with_name(f".{secrets.token_hex(8)}")
            shutil.copytree(stay.folder / "files", draft, copy_function=os.link)
            draft.rename(target)
        return target

    # ---- for gateways ---------------------------------------------------------------------------

    def facts(self, origin: str) -> StoreFacts:
        """Return how much is stored, what came from one store, what has come whole from any, and
        the room for more.

        Raises OSError.
        """
        held = itertools.islice(self._held(origin), MOST_TREES if origin else 0)
        whole = (each.name for each in self._folders() if (each / _WHOLE).exists())
        stored = sum(self._sizes())
        return StoreFacts(
            bytes=stored,
            most=self.max_bytes,
            room=self._find_room(stored),
            held=tuple(held),
            whole=tuple(itertools.islice(whole, MOST_TREES)),
        )

    def _find_room(self, stored: int) -> int | None:
        """Return the bytes of the largest copy that could be made, once all that is unused has
        left; as it was last while another one changes something. Raises OSError."""
        if (fd := try_lock(self.root)) is not None:
            try:
                in_use: dict[str, int] = {}  # what is to come of it, too
                for tree in (_tree_of(each) for each in self._folders() if is_locked(each)):
                    in_use |= _contents(tree) if tree is not None else {}
            finally:
                os.close(fd)
            kept = sum(in_use.values())
            room = self._free_on_disk() + stored - kept
            bound = MOST_BYTES if self.max_bytes is None else self.max_bytes - kept
            self._room = max(0, min(room, bound))
        return self._room

    def _held(self, origin: str) -> Iterator[HeldTree]:
        """Yield what came from one store, as far as a frame holds it."""
        left = _MOST_TOLD
        for folder in self._folders():
            with contextlib.suppress(OSError, ValueError):
                source = (folder / "origins" / origin).read_text()
                left -= len(source.encode())
                if left < 0:
                    return
                yield HeldTree(source, folder.name)

    def drop(self, keys: tuple[str, ...], origin: str) -> None:
        """Remove what a store has no use for any more, at once or when no worker has it open.

        Raises OSError.
        """
        with self._locked():
            for folder in (self._trees / key for key in keys):
                with contextlib.suppress(OSError):
                    (folder / "origins" / (origin or "any")).unlink()
                self._remove_unwanted(folder)

    # ---- under the lock -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + _LOCK_SECONDS
        while (fd := try_lock(self.root)) is None:
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "another agent holds the copies of models for long")
            time.sleep(_LOCK_PAUSE)
        try:
            yield
        finally:
            os.close(fd)

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _lacks(self, tree: Tree) -> dict[str, int]:
        """Return the sizes of the contents that are not there, by their hashes."""
        contents = _contents(tree).items()
        return {sha256: size for sha256, size in contents if not self._blob(sha256).exists()}

    def _link(self, tree: Tree, folder: Path) -> None:
        """Give each file whose content is there its name."""
        made = set()
        for each in tree.files:
            target = folder / "files" / each.path
            if target.exists():
                continue
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # it is to come
                os.link(self._blob(each.sha256), target)
                made.add(target.parent)
        for parent in made:
            sync(parent)

    def _make_room(self, stay: Stay) -> None:
        """Remove what has been unused for longest until all that is to come has room. Raises
        NoRoom."""
        if self.max_bytes is not None and stay.size > self.max_bytes:
            raise NoRoom(f"{_size(stay.size)} are more than workers.ray.models_max_bytes")
        unused = iter(sorted(self._unused()))
        while why := self._lacks_room():
            if (found := next(unused, None)) is None:
                raise NoRoom(why)
            self._remove(found[1])

    def _lacks_room(self) -> str | None:
        """Say why what is there and to come has no room; None if it has."""
        to_come = 0
        for path, size in self._parts_there():
            with contextlib.suppress(FileNotFoundError):  # its writer has given an empty one up
                if is_locked(path):
                    to_come += max(0, size - path.stat().st_size)
        most, stored = self.max_bytes, sum(self._sizes())
        if most is not None and stored + to_come > most:
            return (
                f"workers.ray.models_max_bytes is {_size(most)}, and models in use or coming have "
                "the rest"
            )
        if to_come <= (free := self._free_on_disk()):
            return None
        return f"{_size(to_come)} are to come, and its disk has {_size(max(0, free))} for them"

    def _free_on_disk(self) -> int:
        """Return the bytes that copies may take of what is free; negative on a full disk."""
        disk = os.statvfs(self.root)
        kept = min(_MOST_KEPT, disk.f_blocks * disk.f_frsize // _KEPT_PART)
        return disk.f_bavail * disk.f_frsize - kept

    def _unused(self) -> Iterator[tuple[float, Path]]:
        """Yield folders and parts that nothing holds, with the time of their last use."""
        for path in [*self._folders(), *(path for path, _ in self._parts_there())]:
            if not is_locked(path):
                with contextlib.suppress(OSError):
                    lock = path / "lock" if path.is_dir() else path
                    yield lock.stat().st_mtime, path

    def _remove_unwanted(self, folder: Path) -> None:
        """Remove a folder that no store wants and no worker has open."""
        try:
            wanted = any((folder / "origins").iterdir())
        except OSError:
            wanted = False
        if not wanted and folder.exists() and not is_locked(folder):
            self._remove(folder)

    def _remove(self, path: Path) -> None:
        """Remove a part, or a folder and the contents that no other one has."""
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        tree = _tree_of(path)
        gone = path.with_name(f"{_GONE}{secrets.token_hex(8)}")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        for sha256 in _contents(tree) if tree is not None else ():
            self._drop_blob(self._blob(sha256))

    def _drop_blob(self, blob: Path) -> None:
        with contextlib.suppress(OSError):
            if blob.stat().st_nlink == 1:
                blob.unlink()

    def _sweep(self) -> None:
        """Remove what processes that were killed have left, and nobody can go on with."""
        for each in self._trees.glob(f"{_GONE}*"):
            shutil.rmtree(each, ignore_errors=True)
        for folder in list(self._trees.iterdir()):
            self._remove_unwanted(folder)
            with contextlib.suppress(OSError):  # then it comes again
                if (tree := _tree_of(folder)) is not None:
                    self._link(tree, folder)
        for blob in self._blobs.glob("*/*"):
            self._drop_blob(blob)
        now = time.time()
        for path, _ in self._parts_there():
            with contextlib.suppress(FileNotFoundError):
                if not is_locked(path) and now - path.stat().st_mtime > _PART_SECONDS:
                    path.unlink()

    # ---- what is there --------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        return [each for each in self._trees.iterdir() if not each.name.startswith((_LENT, _GONE))]

    def _parts_there(self) -> list[tuple[Path, int]]:
        """List the parts with the sizes that they are to have."""
        found = (each for each in self._parts.iterdir() if each.suffix[1:].isdigit())
        return [(each, int(each.suffix[1:])) for each in found]

    def _sizes(self) -> Iterator[int]:
        for path in [*self._blobs.glob("*/*"), *(path for path, _ in self._parts_there())]:
            with contextlib.suppress(OSError):
                yield path.stat().st_size


def _tree_of(folder: Path) -> Tree | None:
    """Read what a folder is to have; None if it does not tell."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.msgpack.decode((folder / "tree").read_bytes(), type=Tree)
    return None


def _contents(tree: Tree) -> dict[str, int]:
    return {each.sha256: each.size for each in tree.files}


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
