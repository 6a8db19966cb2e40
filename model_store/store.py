"""Stores models on disk: one folder each, ``files/`` in Hugging Face layout and a manifest.

A folder without a manifest is not listed. New ones are made under ``.partial`` and
moved into place whole; removed ones are moved away first.
"""

import asyncio
import copy
import errno
import math
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from model_store.adapter_links import AdapterLinks
from model_store.adapters import check_base, check_removable
from model_store.blobs import Blobs
from model_store.cleanup import Removal, carry_out, never, plan
from model_store.disk import (
    secure_and_sync,
    store_errors,
    sync,
    sync_folders,
    unavailable,
)
from model_store.errors import BadFiles, BadName, NameTaken, PullRunning, UnknownModel
from model_store.hashes import check_unchanged, hash_files
from model_store.imports import import_folder
from model_store.inspection import based, inspect
from model_store.listing import Listing
from model_store.locks import held, hold, lock
from model_store.manifest import FILES, FileEntry, Manifest, read_manifest, write_manifest
from model_store.names import check_name, check_new_name, folder_name, pull_folder
from model_store.places import PARTIAL, exchange, recover
from model_store.progress import Progress
from model_store.records import Care, Usage, care_of, carry_over, change_care, note_use, usage_of
from model_store.verification import differences

PARTIALS_KEPT = 14 * 24 * 3600.0  #: seconds
Names = list[str]  #: inside the class, ``list`` is a method
Removals = list[Removal]


class ModelStore:
    """Holds the models; safe for several processes, since every change is one rename.

    ``confine`` is the setting ``workers.confine``, for the process that reads pickles;
    ``partials_kept`` the seconds for which an interrupted download can be resumed; ``bases``
    the models that adapters which come in may be for, None: all.
    """

    def __init__(
        self,
        root: Path,
        *,
        confine: str = "auto",
        partials_kept: float = PARTIALS_KEPT,
        bases: Collection[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.confine = confine
        self.partials_kept = partials_kept
        self._bases = bases
        self._replaced: str | None = None
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        recover(self.root, self.root / PARTIAL)
        self.listing = Listing(self.root)
        self.blobs = Blobs(self.root, self._holders)
        self.adapter_links = AdapterLinks(self.root)

    # ---- what is there -------------------------------------------------------------------------

    def list(self) -> list[Manifest]:
        """Return all models, by name."""
        return list(self.listing.all().values())

    def names(self) -> Names:
        return list(self.listing.all())

    @property
    def names_told(self) -> Names:
        """Return the models that messages may name: those that adapters which come may be for."""
        return [name for name in self.names() if self._bases is None or name in self._bases]

    def get(self, name: str) -> Manifest:
        """Return the model's manifest. Raises UnknownModel."""
        found = self.listing.find(name)
        if found is None:
            raise _unknown()
        return found

    def path(self, name: str) -> Path:
        """Return the folder with the model's files. Raises UnknownModel."""
        self.get(name)
        return self.folder(name) / FILES

    def weights_path(self, name: str) -> Path:
        """Return the folder of a model's weights, of an adapter its base's. Raises UnknownModel."""
        return self.path(self.get(name).adapter_of or name)

    def folder(self, name: str) -> Path:
        """Return the folder of a model, if there is one. Raises BadName."""
        return self.root / folder_name(check_name(name))

    def _holders(self, sha256: str) -> Iterator[tuple[Path, FileEntry]]:
        for manifest in self.list():
            files = self.folder(manifest.name) / FILES
            yield from ((files / e.path, e) for e in manifest.files if e.sha256 == sha256)

    # ---- changes -------------------------------------------------------------------------------

    def import_folder(
        self,
        source: Path,
        name: str,
        progress: Progress | None = None,
        *,
        allow_pickles: bool = False,
        base: str | None = None,
    ) -> Manifest:
        """Import a folder in Hugging Face layout, or a repository of the hub's own cache.

        By hard links if possible, else by copies. ``allow_pickles``: where there are no better
        weights, convert those. ``base``: of an adapter, in place of the one that its files name.
        Raises BadFiles, NameTaken, BadName or NoSpace.
        """
        return import_folder(self, source, name, progress, allow_pickles=allow_pickles, base=base)

    def finish(
        self,
        folder: Path,
        name: str,
        *,
        source: str,
        revision: str | None = None,
        description: str = "",
        base: str | None = None,
        progress: Progress | None = None,
        known: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Inspect and hash a draft's files, write its manifest, and move it into place.

        ``known`` are SHA-256 digests of files that were hashed on their way here.
        """
        files = folder / FILES
        found = based(inspect(files), base)
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
        check_base(manifest, self.listing.all(), self._bases)
        sync_folders(files)
        write_manifest(folder, manifest)
        sync(folder)
        self._move_in(folder, name)
        return manifest

    def _move_in(self, folder: Path, name: str) -> None:
        place = self.folder(name)
        if self._replaced == name and place.exists():
            with held(place, shared=False):
                carry_over(place, folder)
                sync(folder)
                exchange(folder, place, self.partial)
            self.listing.refresh()
            self.blobs.delete_model(folder)
            return
        self.check_free(name)
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise _taken(name) from error
        self.listing.refresh()
        sync(self.root)

    def replacing(self, name: str) -> "ModelStore":
        """Return this store as one in which a new model of this name takes the old one's place.

        The change is one step; usage, pin and notes stay. Raises UnknownModel.
        """
        self.get(name)
        view = copy.copy(self)
        view._replaced = name
        return view

    def check_free(self, name: str) -> None:
        """Raise NameTaken or BadName. On the hub, names that differ only in case are the same."""
        wanted = self.folder(name).name.lower()
        if self._replaced == name:
            return
        check_new_name(name)
        try:
            there = os.listdir(self.root)
        except OSError as error:
            raise unavailable("read", error) from error
        if any(folder.lower() == wanted for folder in there):
            raise _taken(name)

    def remove(
        self,
        name: str,
        *,
        unless_held: bool = False,
        may_see: Callable[[str], bool] = lambda _: True,
    ) -> bool:
        """Remove a model, also a damaged one. Raises UnknownModel, BaseOfAdapters or BadFiles.

        ``unless_held``: not while it is being loaded or replaced; returns whether it went.
        ``may_see``: which models the error may name.
        """
        with store_errors("The model cannot be removed"), ExitStack() as opened:
            check_removable(name, self.listing.all(), may_see)
            gone = self.partial / f"removed-{os.urandom(6).hex()}"
            try:
                folder = self.folder(name)
                if (handle := lock(folder)) is not None:
                    opened.callback(os.close, handle)  # till then no clean-up takes part
                elif unless_held:
                    return False
                folder.rename(gone)
            except (BadName, FileNotFoundError):
                raise _unknown() from None
            self.listing.refresh()
            sync(self.root)  # or half of its files could be back after a power cut
            self.blobs.delete_model(gone)
        return True

    # ---- care ----------------------------------------------------------------------------------

    def usage(self, name: str) -> Usage:
        """Return when the model was last used. Raises UnknownModel."""
        self.get(name)
        return usage_of(self.folder(name))

    def touch(self, name: str, *, loaded: bool = False) -> None:
        """Record that the model is in use now. Does nothing where that cannot be written."""
        with suppress(OSError, UnknownModel):
            self.get(name)
            note_use(self.folder(name), loaded=loaded)

    async def record_use(self, name: str, *, loaded: bool = False) -> None:
        """Do as ``touch`` does, beside the event loop."""
        await asyncio.to_thread(self.touch, name, loaded=loaded)

    def care(self, name: str) -> Care:
        """Return whether the model is pinned, and its notes. Raises UnknownModel."""
        self.get(name)
        return care_of(self.folder(name))

    def set_care(self, name: str, *, pinned: bool | None = None, notes: str | None = None) -> None:
        """Pin the model or not, write its notes; None leaves one as it is.

        Raises UnknownModel, or BadFiles if it cannot be written.
        """
        self.get(name)
        with store_errors("The model's notes cannot be written"):
            change_care(self.folder(name), pinned, notes)

    def gc(
        self,
        *,
        do: bool = False,
        partials_kept: float | None = None,
        max_bytes: int | None = None,
        in_use: Callable[[str], bool] = never,
    ) -> Removals:
        """Say what may be removed, or with ``do`` remove it and say what went.

        ``partials_kept`` is the store's where it is None; ``in_use`` says which models stay, as
        pinned ones do. Raises StoreUnavailable.
        """
        kept = self.partials_kept if partials_kept is None else partials_kept
        found = plan(self, partials_kept=kept, max_bytes=max_bytes, in_use=in_use)
        return carry_out(self, found, in_use) if do else found

    def verify(self, name: str, progress: Progress | None = None) -> Names:
        """Return the files that are missing, new, unreadable, or not what the manifest says.

        If there are none, the files as they are now pass ``check``. Raises UnknownModel.
        """
        return [each.path for each in differences(self, [name], progress)[name]]

    def read(self, name: str) -> Manifest:
        """Return the manifest as it is on the disk now.

        Raises UnknownModel, StoreUnavailable, or BadFiles if it is damaged or unreadable.
        """
        self.get(name)
        try:
            with store_errors("The manifest cannot be read"):
                return read_manifest(self.folder(name))
        except BadFiles as error:
            if isinstance(error.__cause__, FileNotFoundError):
                self.listing.refresh()  # the store is gone, or the model alone
                raise _unknown() from error
            raise

    @asynccontextmanager
    async def loading(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Check the models and adapters' bases, and hold them while their files are being opened.

        Raises as ``check`` does.
        """
        found = [self.get(name) for name in names]
        bases = [each.adapter_of for each in found if each.adapter_of]
        with ExitStack() as holds:
            for name in (*(each.name for each in found), *bases):
                await self.check(name)
                handle = await asyncio.to_thread(self._hold, name)
                holds.callback(os.close, handle)
            yield

    def _hold(self, name: str) -> int:
        with store_errors("The model cannot be read"):
            return hold(self.folder(name), shared=True)

    async def check(self, name: str) -> None:
        """Compare the sizes and times of a model's files with its manifest's; reads no file.

        A file that was linked on import can change where it came from. Raises UnknownModel,
        ChangedFiles, UnreadableFiles, or BadFiles for a damaged manifest.
        """
        await asyncio.to_thread(self._check, name)

    def _check(self, name: str) -> None:
        check_unchanged(self.read(name), self.folder(name) / FILES)

    @property
    def partial(self) -> Path:
        """Return the folder of unfinished work, on the same file system as the models.

        Raises StoreUnavailable.
        """
        folder = self.root / PARTIAL
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unavailable("written to", error) from error
        return folder

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Yield a folder for ``files/``; remove it at the end unless ``finish`` moved it away."""
        carry_out(self, plan(self, partials_kept=math.inf))
        try:
            folder = Path(tempfile.mkdtemp(prefix="draft-", dir=self.partial))
        except OSError as error:
            raise unavailable("written to", error) from error
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
        folder = self.partial / pull_folder(repo)
        while True:  # the one before removes it at its end
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            if (handle := lock(folder)) is not None:
                break
            if folder.exists():
                raise PullRunning(f"{repo} is being pulled already.")
        try:
            yield folder
        finally:
            os.close(handle)


def _taken(name: str) -> NameTaken:
    return NameTaken(f"The store has a model '{name}' already; remove it, or choose another name.")


def _unknown() -> UnknownModel:
    return UnknownModel("The store has no model of this name.")
