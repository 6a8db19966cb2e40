"""Exports a model as a folder that other libraries load."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.disk import check_room, copy, link_or_copy, store_errors, sync_folders
from model_store.errors import BadFiles
from model_store.locks import LOCK, lock
from model_store.progress import Counter, Progress

if TYPE_CHECKING:
    from model_store.store import ModelStore


def export(
    store: "ModelStore",
    name: str,
    target: Path,
    progress: Progress | None = None,
    *,
    links: bool = False,
) -> int:
    """Make a folder with the model's files, as its repository has them; return their bytes.

    It appears whole or not at all. ``links``: by hard links where the disk allows them; writing
    to such a file changes the model. Raises UnknownModel, NoSpace, or BadFiles where the
    target is there and not empty, or lies in the store.
    """
    manifest, files = store.get(name), store.path(name)
    target = target.absolute()
    with store_errors("The folder cannot be written"):
        _check(store, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not links:
            check_room(target.parent, manifest.total_bytes)
        draft = target.parent / f".{target.name}.bitinglip-export"
        if draft.is_dir():
            _remove_left(draft)
        draft.mkdir()
        handle = lock(draft)
        try:
            counter = Counter(progress, {entry.path: entry.size for entry in manifest.files})
            for entry in manifest.files:
                into = draft / entry.path
                into.parent.mkdir(parents=True, exist_ok=True)
                (link_or_copy if links else copy)(files / entry.path, into)
                counter.add(entry.path, entry.size)
            (draft / LOCK).unlink(missing_ok=True)
            sync_folders(draft)
            draft.rename(target)  # takes the place of an empty folder
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        finally:
            if handle is not None:
                os.close(handle)
    return manifest.total_bytes


def _check(store: "ModelStore", target: Path) -> None:
    if target.resolve().is_relative_to(store.root.resolve()):
        raise BadFiles("The folder lies in the store; choose one outside.")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadFiles("There is a file of this name; choose another folder.")
    if target.is_dir() and any(target.iterdir()):
        raise BadFiles("The folder is not empty; choose another one.")


def _remove_left(draft: Path) -> None:
    """Remove what an export left that was killed. Raises BadFiles if it still runs."""
    if (handle := lock(draft)) is None:
        raise BadFiles("The model is being exported there already.")
    shutil.rmtree(draft)
    os.close(handle)
