"""Stores models on disk: one folder each, ``files/`` in Hugging Face layout and a manifest.

A folder without a manifest does not exist for anybody. New ones are made under ``.partial`` and
moved into place whole; removed ones are moved away first.
"""

import asyncio
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from model_store.blobs import Blobs
from model_store.disk import (
    check_room,
    link_or_copy,
    lock,
    may_link,
    secure_and_sync,
    store_errors,
    sync,
    sync_folders,
)
from model_store.errors import (
    BadFiles,
    BadName,
    ChangedFiles,
    NameTaken,
    PullRunning,
    UnknownModel,
    UnreadableFiles,
)
from model_store.hashes import hash_files, is_unchanged, is_whole, stamped
from model_store.inspection import inspect, inspect_texts, model_files
from model_store.listing import Listing
from model_store.manifest import FILES, FileEntry, Manifest, read_manifest, write_manifest
from model_store.names import check_name, folder_name
from model_store.pickles import convert, pickled
from model_store.progress import Counter, Progress
from model_store.rights import refusal
from model_store.selection import WEIGHTS, required

PARTIAL = ".partial"
_SWEPT_AFTER_SECONDS = 60  #: a folder is made a moment before it is locked
_RESUMED_WITHIN_SECONDS = 14 * 24 * 3600  #: a pull is, or it begins anew
Names = list[str]  #: inside the class, ``list`` is a method


class ModelStore:
    """Holds the models; safe for several processes, since every change is one rename.

    ``confine`` is the setting ``workers.confine``, for the process that reads pickles.
    """

    def __init__(self, root: Path, *, confine: str = "auto") -> None:
        self._root = Path(root)
        self.confine = confine
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.listing = Listing(self._root)
        self.blobs = Blobs(self._root, self._holders)

    # ---- what is there -------------------------------------------------------------------------

    def list(self) -> list[Manifest]:
        """Return all models, by name."""
        return list(self.listing.all().values())

    def names(self) -> Names:
        return list(self.listing.all())

    def get(self, name: str) -> Manifest:
        """Return the model's manifest. Raises UnknownModel."""
        found = self.listing.find(name)
        if found is None:
            raise _unknown()
        return found

    def path(self, name: str) -> Path:
        """Return the folder with the model's files. Raises UnknownModel."""
        self.get(name)
        return self._folder(name) / FILES

    def _folder(self, name: str) -> Path:
        return self._root / folder_name(check_name(name))

    def _holders(self, sha256: str) -> Iterator[tuple[Path, FileEntry]]:
        for manifest in self.list():
            files = self._folder(manifest.name) / FILES
            yield from ((files / e.path, e) for e in manifest.files if e.sha256 == sha256)

    # ---- changes -------------------------------------------------------------------------------

    def import_folder(
        self,
        source: Path,
        name: str,
        progress: Progress | None = None,
        *,
        allow_pickles: bool = False,
    ) -> Manifest:
        """Import a folder in Hugging Face layout, by hard links if possible, else by copies.

        ``allow_pickles``: where there are no better weights, convert those. Raises BadFiles,
        NameTaken, BadName or NoSpace.
        """
        self.check_free(name)
        with store_errors("The folder cannot be read"), self.draft() as folder:
            targets = _link_targets(Path(source))
            selected = required(targets)
            pickles = []
            if allow_pickles and not any(path.endswith(WEIGHTS) for path in selected):
                pickles = pickled(targets)
            if pickles:
                inspect_texts(Path(source))
            else:
                inspect(Path(source))
            chosen = {path: targets[path] for path in [*selected, *pickles]}
            copied = [real for real in chosen.values() if not may_link(real, folder)]
            check_room(self.partial, sum(real.stat().st_size for real in copied))
            for path, real in chosen.items():
                link_or_copy(real, folder / FILES / path)
            if pickles:
                convert(folder / FILES, progress, confine=self.confine)
            return self.finish(folder, name, source="import", progress=progress)

    def finish(
        self,
        folder: Path,
        name: str,
        *,
        source: str,
        revision: str | None = None,
        description: str = "",
        progress: Progress | None = None,
        known: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Inspect and hash a draft's files, write its manifest, and move it into place.

        ``known`` are SHA-256 digests of files that were hashed on their way here.
        """
        files = folder / FILES
        found = inspect(files)
        hashed = hash_files(files, progress, known or {})
        secure_and_sync(files)
        entries = tuple(self.blobs.share(files / entry.path, entry) for entry in hashed)
        manifest = Manifest(
            name=name,
            source=source,
            revision=revision,
            description=description,
            files=entries,
            total_bytes=sum(entry.size for entry in entries),
            created_at=datetime.now(UTC),
            **vars(found),
        )
        sync_folders(files)
        write_manifest(folder, manifest)
        sync(folder)
        self._move_in(folder, name)
        return manifest

    def _move_in(self, folder: Path, name: str) -> None:
        self.check_free(name)
        try:
            folder.rename(self._folder(name))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise _taken(name) from error
        self.listing.look()
        sync(self._root)

    def check_free(self, name: str) -> None:
        """Raise NameTaken or BadName. On the hub, names that differ only in case are the same."""
        wanted = self._folder(name).name.lower()
        if any(folder.name.lower() == wanted for folder in self._root.iterdir()):
            raise _taken(name)

    def remove(self, name: str) -> None:
        """Remove a model, also a damaged one. Raises UnknownModel, or BadFiles if it stays."""
        with store_errors("The model cannot be removed"):
            gone = self.partial / f"removed-{os.urandom(6).hex()}"
            try:
                folder = self._folder(name)
                handle = lock(folder)  # so that no sweep of another process takes part
                folder.rename(gone)
            except (BadName, FileNotFoundError):
                raise _unknown() from None
            self.listing.look()
            digests = _digests(gone)
            shutil.rmtree(gone)
            for sha256 in digests:
                self.blobs.drop(sha256)
            if handle is not None:
                os.close(handle)

    def verify(self, name: str, progress: Progress | None = None) -> Names:
        """Return the files that are missing, new, unreadable, or not what the manifest says.

        If there are none, the files as they are now pass ``check``.
        """
        manifest = self.get(name)
        folder = self._folder(name)
        files = folder / FILES
        counter = Counter(progress, manifest.total_bytes, len(manifest.files))
        entries = tuple(stamped(files, entry) for entry in manifest.files)
        wrong = [entry.path for entry in entries if not is_whole(files, entry, counter)]
        listed = {entry.path for entry in entries}
        there = (str(path.relative_to(files)) for path in files.rglob("*") if not path.is_dir())
        wrong += [path for path in there if path not in listed]
        if not wrong and entries != manifest.files:
            with suppress(OSError):  # a store that may only be read
                write_manifest(folder, msgspec.structs.replace(manifest, files=entries))
        return sorted(wrong)

    async def check(self, name: str) -> None:
        """Compare the sizes and times of a model's files with its manifest's; reads no file.

        A file that was linked on import can change where it came from. Raises UnknownModel,
        ChangedFiles, UnreadableFiles, or BadFiles for a damaged manifest.
        """
        await asyncio.to_thread(self._check, name)

    def _check(self, name: str) -> None:
        self.get(name)
        with store_errors("The manifest cannot be read"):
            manifest = read_manifest(self._folder(name))  # `models verify` may have written it
        files = self._folder(name) / FILES
        barred = [e.path for e in manifest.files if refusal(files / e.path, write=False)]
        if barred:
            raise UnreadableFiles(
                f"The server may not read the model's file {barred[0]}; 'bitinglip doctor', run as "
                "the server's user, says whose it is and what to do."
            )
        changed = [entry.path for entry in manifest.files if not is_unchanged(files, entry)]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ChangedFiles(
                f"The model's file {changed[0]}{more} changed after it was taken in, or is "
                f"missing. Check it with 'bitinglip models verify {name}'; what is whole can be "
                "loaded after that, what is not must be removed and added again."
            )

    @property
    def partial(self) -> Path:
        """Return the folder of unfinished work, on the same file system as the models."""
        folder = self._root / PARTIAL
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Yield a folder for ``files/``; remove it at the end unless ``finish`` moved it away."""
        self.sweep()
        folder = Path(tempfile.mkdtemp(prefix="draft-", dir=self.partial))
        handle = lock(folder)
        try:
            (folder / FILES).mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if handle is not None:
                os.close(handle)

    @contextmanager
    def pulling(self, repo: str) -> Iterator[Path]:
        """Yield the folder of a repository's partial download, kept so that a pull can resume.

        One process at a time may have it. Raises PullRunning.
        """
        folder = self.partial / f"pull-{folder_name(check_name(repo)).lower()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        handle = lock(folder)
        if handle is None:
            raise PullRunning(f"{repo} is being pulled already.")
        try:
            yield folder
        finally:
            os.close(handle)

    def sweep(self) -> None:
        """Remove what killed processes left, and pulls that nobody has resumed for two weeks."""
        for folder in self.partial.iterdir():
            with suppress(OSError):  # another process sweeps too
                if _is_left(folder) and (handle := lock(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(handle)


def _is_left(folder: Path) -> bool:
    """Return whether nobody needs the folder any more unless it is locked."""
    if folder.name.startswith("removed-"):
        return True
    if folder.name.startswith("pull-"):
        times = (path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
        return time.time() - max(times) > _RESUMED_WITHIN_SECONDS
    old = time.time() - folder.stat().st_mtime > _SWEPT_AFTER_SECONDS
    return old and folder.name.startswith("draft-")


def _digests(folder: Path) -> set[str]:
    """Return the hashes that a folder's manifest lists; none if it has no whole one."""
    try:
        return {entry.sha256 for entry in read_manifest(folder).files}
    except (BadFiles, OSError):
        return set()


def _link_targets(source: Path) -> dict[str, Path]:
    """Return the files of a folder and where each really lies: in it, or, if it is a snapshot
    of a hub cache, among the blobs beside it."""
    if not source.is_dir():
        raise BadFiles("There is no such folder.")
    root = source.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    targets = {path: (source / path).resolve() for path in model_files(source)}
    for path, target in targets.items():
        if not any(target.is_relative_to(one) for one in allowed):
            raise BadFiles(f"{path[:120]} is a link that leaves the folder.")
        if not target.is_file():
            raise BadFiles(f"{path[:120]} is not a file, or a link to nothing.")
    return targets


def _taken(name: str) -> NameTaken:
    return NameTaken(f"The store has a model '{name}' already; remove it, or choose another name.")


def _unknown() -> UnknownModel:
    return UnknownModel("The store has no model of this name.")
