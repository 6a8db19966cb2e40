"""Hashes models' files, and compares them with their entries in a manifest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from model_store.errors import ChangedFiles, UnreadableFiles
from model_store.inspection import model_files
from model_store.manifest import FileEntry, Manifest
from model_store.progress import Counter, Progress
from model_store.rights import refusal

_CHUNK = 1 << 20


def hash_files(
    folder: Path, progress: Progress | None, known: Mapping[str, str]
) -> tuple[FileEntry, ...]:
    """Hash each file of the folder and return its entries, by path."""
    # Looked at before they are read: what changes meanwhile is noticed later.
    found = {path: (folder / path).stat() for path in model_files(folder)}
    unknown = [path for path in found if path not in known]
    digests = dict(known)
    if unknown:
        counter = Counter(progress, {path: found[path].st_size for path in unknown})
        digests |= {path: sha256_of(folder / path, path, counter) for path in unknown}
    return tuple(
        FileEntry(path, stat.st_size, digests[path], stat.st_mtime_ns)
        for path, stat in found.items()
    )


def check_unchanged(manifest: Manifest, files: Path) -> None:
    """Compare the sizes and times of a model's files with its manifest's; read no file.

    Raises UnreadableFiles or ChangedFiles.
    """
    barred = [e.path for e in manifest.files if refusal(files / e.path, write=False)]
    if barred:
        raise UnreadableFiles(
            f"The server may not read the model's file {barred[0]}; 'bitinglip doctor', run as "
            "the server's user, says whose it is and what to do."
        )
    changed = [entry.path for entry in manifest.files if not _is_unchanged(files, entry)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ChangedFiles(
            f"The model's file {changed[0]}{more} changed after it was taken in, or is missing. "
            f"'bitinglip models verify {manifest.name} --repair' reads it, fetches what differs if "
            "it came from the hub, and lets it be loaded again if it is whole."
        )


def _is_unchanged(folder: Path, entry: FileEntry) -> bool:
    try:
        stat = (folder / entry.path).stat()
    except OSError:
        return False
    # Archives and image layers keep whole seconds.
    times = (entry.mtime_ns, entry.mtime_ns // 10**9 * 10**9)
    return stat.st_size == entry.size and (not entry.mtime_ns or stat.st_mtime_ns in times)


def sha256_of(path: Path, name: str, counter: Counter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            counter.add(name, len(chunk))
    return digest.hexdigest()
