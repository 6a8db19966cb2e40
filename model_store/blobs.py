"""Keeps the contents of models' files by their hash, so that equal files exist once.

A blob and the files of models that have its content are one file under several names (hard
links). A blob holds what this store alone may write: a file that was linked on import has other
names outside, can change there, and is therefore copied when another model needs its content.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from model_store.disk import check_room, copy, sync
from model_store.locks import held
from model_store.manifest import FileEntry, digests_of

BLOBS = ".blobs"
GIT = "git"  #: the folder of links that are named by git's hash
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHA1 = re.compile(r"[0-9a-f]{40}", re.ASCII)
_CHUNK = 1 << 20
#: a file system without hard links, or a file that has as many as it can
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EACCES}
_Stamp = tuple[int, int, int]

#: sha256 -> the models' files that had this content when they were taken in
Holders = Callable[[str], Iterable[tuple[Path, FileEntry]]]


class Blobs:
    """Owns the blobs of a store.

    Several processes may use it, since each change is one system call.
    """

    def __init__(self, root: Path, holders: Holders = lambda _: ()) -> None:
        """``root`` is the store's folder; ``holders`` tells which models have a content."""
        self.folder = root / BLOBS
        self._holders = holders
        self._whole: dict[str, _Stamp] = {}  #: as they were when this process had hashed them

    def path(self, sha256: str) -> Path:
        """Return where the blob of this content is, or would be."""
        return self.folder / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        """Return the blob of this content, or None.

        Its bytes are those of the hash: nothing has written to it since a manifest recorded its
        time, or else it is read. A damaged blob is removed; the models that share it keep theirs.
        What only a model has, as in stores of version 0.1, is read and becomes a blob.
        """
        if not _SHA256.fullmatch(sha256):
            return None
        blob = self.path(sha256)
        was_there = blob.exists()
        if self._is_whole(blob, sha256):
            return blob
        if was_there:  # and not made by another process in this moment
            self.discard(sha256)
        for path, entry in self._holders(sha256):
            found = _stamp(path)
            with suppress(OSError):
                if found and _is_as_listed(found, entry) and self._adopt(path, sha256):
                    break
        # Another process may have made it at the same time.
        return blob if self._is_whole(blob, sha256) else None

    def read_again(self, sha256: str) -> Path | None:
        """Return the blob if it has the bytes of its hash now, which is read; remove another.

        Bytes that rot in place change no time, so that ``find`` does not notice them.
        """
        blob = self.path(sha256)
        with suppress(OSError):
            if _sha256(blob) == sha256:
                return blob
        self.discard(sha256)
        return None

    def _adopt(self, path: Path, sha256: str) -> bool:
        """Make a model's file a blob, if it has the content and no name outside this store.

        It is read: another process may have replaced its model by now, by one whose file has the
        same size and, as clocks of file systems tick slowly, the same time.
        """
        blob = self.path(sha256)
        _make_folder(blob.parent)
        draft = _draft(blob)
        with held(blob.parent, shared=False):  # one at a time, or the drafts count as names
            if blob.exists():
                return True
            try:
                os.link(path, draft)
                is_it = draft.stat().st_nlink == 2 and _sha256(draft) == sha256
                if is_it:
                    draft.replace(blob)
                    sync(blob.parent)
                    self._remember(blob, sha256)
            finally:
                draft.unlink(missing_ok=True)
        return is_it

    def find_git(self, sha1: str) -> Path | None:
        """Return the blob with this hash of git's, if it was taken with one."""
        if not _SHA1.fullmatch(sha1):
            return None
        try:
            target = os.readlink(self._git(sha1))
        except OSError:
            return None
        return self.find(Path(target).name)

    def copied(self, sha256: str) -> Path | None:
        """Return a blob that is copied from a model's file which others may write to, or None.

        For what ``find`` does not find. Raises NoSpace or OSError.
        """
        for path, entry in self._holders(sha256):
            if (stamp := _stamp(path)) is None or not _is_as_listed(stamp, entry):
                continue
            blob = self.path(sha256)
            _make_folder(blob.parent)
            check_room(blob.parent, entry.size)
            draft = _draft(blob)
            try:
                copy(path, draft)
                if _sha256(draft) == sha256:
                    return self.take(draft, sha256)
            finally:
                draft.unlink(missing_ok=True)
        return None

    def take(self, path: Path, sha256: str, git_sha1: str | None = None) -> Path:
        """Move a file, whose hashes the caller has checked, in as a blob; return the blob.

        Returns once it is safe on the disk. ``path`` is on the store's file system and gone
        afterwards. Raises OSError.
        """
        blob = self.path(sha256)
        _make_folder(blob.parent)
        if self._is_whole(blob, sha256) and blob.stat().st_nlink > 1:
            path.unlink()  # models share the one that is there
        else:
            path.chmod(0o600)
            sync(path)
            path.replace(blob)
            sync(blob.parent)
            self._remember(blob, sha256)
        if git_sha1 is not None:
            self._name_by_git(git_sha1, sha256)
        return blob

    def add(self, path: Path, sha256: str) -> None:
        """Make a model's file, which has this content and no other name, a blob as well.

        Does nothing where the file system has no hard links.
        """
        blob = self.path(sha256)
        _make_folder(blob.parent)
        try:
            os.link(path, blob)
        except OSError as error:
            if error.errno not in {*_NO_LINKS, errno.EEXIST}:
                raise
            return
        sync(blob.parent)
        self._remember(blob, sha256)

    def link(self, sha256: str, target: Path) -> None:
        """Give a blob's content the name ``target``, by a hard link if possible, else as a copy.

        Raises FileNotFoundError if there is no such blob (any more), FileExistsError, or OSError.
        """
        blob = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(blob, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            copy(blob, target)
            target.chmod(0o600)

    def share(self, path: Path, entry: FileEntry) -> FileEntry:
        """Make a new model's file one with the blob of its content; return its entry then.

        A file with other names is not ours alone, and becomes no blob.
        """
        blob, own = self.find(entry.sha256), path.stat()
        if blob is None:
            if own.st_nlink == 1:
                self.add(path, entry.sha256)
            return entry
        draft = _draft(path)
        try:
            if os.path.samestat(blob.stat(), own):
                return entry
            os.link(blob, draft)
        except FileNotFoundError:  # its last model was removed meanwhile
            return entry
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.drop(entry.sha256)  # without hard links the model's own copy is all we keep
            return entry
        draft.replace(path)
        return msgspec.structs.replace(entry, mtime_ns=path.stat().st_mtime_ns)

    def discard(self, sha256: str) -> None:
        """Remove a blob that is damaged. The models that share it keep their files."""
        self._whole.pop(sha256, None)
        with suppress(OSError):
            self.path(sha256).unlink()

    def drop(self, sha256: str) -> int:
        """Remove a blob that no model shares; return its bytes, 0 if it stays."""
        blob = self.path(sha256)
        with suppress(OSError):
            found = blob.lstat()
            if found.st_nlink == 1:
                self.discard(sha256)
                return found.st_size
        return 0

    def delete_model(self, folder: Path) -> None:
        """Delete a folder that was a model, and the blobs that nothing else shares."""
        digests = digests_of(folder)
        shutil.rmtree(folder)
        for sha256 in digests:
            self.drop(sha256)

    def _is_whole(self, blob: Path, sha256: str) -> bool:
        stamp = _stamp(blob)
        if stamp is None:
            return False
        if self._whole.get(sha256) == stamp:
            return True
        if not any(_is_as_listed(stamp, entry) for _, entry in self._holders(sha256)):
            try:
                if _sha256(blob) != sha256:
                    return False
            except OSError:  # a disk that fails to read it
                return False
        self._whole[sha256] = stamp  # as it was before it was read
        return True

    def _remember(self, blob: Path, sha256: str) -> None:
        if (stamp := _stamp(blob)) is not None:
            self._whole[sha256] = stamp

    def _git(self, sha1: str) -> Path:
        return self.folder / GIT / sha1[:2] / sha1

    def _name_by_git(self, sha1: str, sha256: str) -> None:
        named = self._git(sha1)
        _make_folder(named.parent)
        draft = _draft(named)
        # Where there are no links, the file is fetched again when another model needs it.
        with suppress(OSError):
            draft.symlink_to(f"../../{sha256[:2]}/{sha256}")
            draft.replace(named)


def _stamp(path: Path) -> _Stamp | None:
    """Return what changes when a regular file is written to; None if it is not one."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _is_as_listed(stamp: _Stamp, entry: FileEntry) -> bool:
    """Return whether a file is as it was when its manifest was written: by size and time."""
    return entry.mtime_ns != 0 and stamp[1:] == (entry.size, entry.mtime_ns)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _draft(path: Path) -> Path:
    """Return a name beside the path that nothing has; ``gc`` removes what a crash leaves there."""
    return path.with_name(f".{path.name[:16]}-{secrets.token_hex(6)}")


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in (folder, folder.parent, folder.parent.parent):
            sync(each)
