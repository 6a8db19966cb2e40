"""The models on disk: one folder each, ``files/`` in Hugging Face layout and a manifest.

A folder without a manifest does not exist for anybody. New ones are made under ``.partial`` and
moved into place whole; removed ones are moved away first.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from model_store.errors import BadFiles, NameTaken, UnknownModel
from model_store.inspection import inspect, model_files
from model_store.manifest import FileEntry, Manifest, read_manifest, write_manifest
from model_store.names import check_files, check_name, folder_name
from model_store.progress import Counter, Progress

FILES = "files"
PARTIAL = ".partial"
_CHUNK = 1 << 20
Names = list[str]  #: inside the class, ``list`` is a method


class ModelStore:
    """Safe for several processes: every change is one rename."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cached: dict[str, Manifest] = {}
        self._stamp: int | None = None

    # ---- what is there -------------------------------------------------------------------------

    def list(self) -> list[Manifest]:
        """All models, by name."""
        return list(self._manifests().values())

    def names(self) -> Names:
        return list(self._manifests())

    def get(self, name: str) -> Manifest:
        """Raises UnknownModel."""
        try:
            return self._manifests()[name]
        except KeyError:
            raise UnknownModel("The store has no model of this name.") from None

    def path(self, name: str) -> Path:
        """The folder with the model's files. Raises UnknownModel."""
        self.get(name)
        return self._folder(name) / FILES

    def _manifests(self) -> dict[str, Manifest]:
        """Read anew when the folder has changed: adding and removing are renames in it."""
        stamp = self._root.stat().st_mtime_ns
        if stamp != self._stamp:
            found = sorted(self._read(), key=lambda manifest: manifest.name)
            self._cached, self._stamp = {manifest.name: manifest for manifest in found}, stamp
        return self._cached

    def _read(self) -> Iterator[Manifest]:
        for folder in self._root.iterdir():
            if not folder.name.startswith("."):
                try:
                    yield read_manifest(folder)
                except (BadFiles, FileNotFoundError, NotADirectoryError):
                    continue

    def _folder(self, name: str) -> Path:
        return self._root / folder_name(check_name(name))

    # ---- changes -------------------------------------------------------------------------------

    def import_folder(self, source: Path, name: str, progress: Progress | None = None) -> Manifest:
        """Take a folder in Hugging Face layout in: hard links where they can be, else copies.

        Raises BadFiles, NameTaken or BadName.
        """
        source = Path(source)
        self.check_free(name)
        if not source.is_dir():
            raise BadFiles("There is no such folder.")
        paths = list(model_files(source))
        check_files(paths)
        _refuse_links_out(source, paths)
        inspect(source)
        with self.draft() as folder:
            for path in paths:
                _bring(source / path, folder / FILES / path)
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
    ) -> Manifest:
        """Inspect and hash a draft's files, write its manifest, and move it into place."""
        files = folder / FILES
        found = inspect(files)
        entries = hash_files(files, progress)
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
        for path in [files, *files.rglob("*")]:
            if not path.is_dir() and path.stat().st_nlink > 1:
                continue  # a hard link has the mode of the file it was made from
            path.chmod(0o700 if path.is_dir() else 0o600)
        write_manifest(folder, manifest)
        self.check_free(name)
        try:
            folder.rename(self._folder(name))
        except OSError as error:
            raise _taken(name) from error
        return manifest

    def check_free(self, name: str) -> None:
        """Raises NameTaken or BadName."""
        if (self._folder(name) / "manifest.json").exists():
            raise _taken(name)

    def remove(self, name: str) -> None:
        """Raises UnknownModel."""
        self.get(name)
        gone = self.partial / f"removed-{os.urandom(6).hex()}"
        self._folder(name).rename(gone)
        shutil.rmtree(gone)

    def verify(self, name: str, progress: Progress | None = None) -> Names:
        """Paths of files that are missing or are not what the manifest says."""
        manifest = self.get(name)
        files = self.path(name)
        counter = Counter(progress, manifest.total_bytes, len(manifest.files))
        wrong = []
        for entry in manifest.files:
            path = files / entry.path
            if (
                not path.is_file()
                or path.stat().st_size != entry.size
                or sha256_of(path, entry.path, counter) != entry.sha256
            ):
                wrong.append(entry.path)
        return wrong

    @property
    def partial(self) -> Path:
        """Where unfinished work lies; on the same file system as the models."""
        folder = self._root / PARTIAL
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder to fill with ``files/``; gone at the end unless ``finish`` moved it away."""
        folder = Path(tempfile.mkdtemp(prefix="draft-", dir=self.partial))
        (folder / FILES).mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def hash_files(folder: Path, progress: Progress | None = None) -> tuple[FileEntry, ...]:
    """An entry for each file of the folder, by path."""
    sizes = {p: (folder / p).stat().st_size for p in model_files(folder)}
    counter = Counter(progress, sum(sizes.values()), len(sizes))
    return tuple(
        FileEntry(path, size, sha256_of(folder / path, path, counter))
        for path, size in sizes.items()
    )


def sha256_of(path: Path, name: str, counter: Counter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            counter.add(name, len(chunk))
    return digest.hexdigest()


def _refuse_links_out(source: Path, paths: Names) -> None:
    """Links may stay inside the folder, or lead to the blobs beside a hub cache's snapshot."""
    root = source.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for path in paths:
        target = (source / path).resolve()
        if not target.is_file() or not any(target.is_relative_to(one) for one in allowed):
            raise BadFiles(f"{path[:120]} is a link that leaves the folder.")


def _bring(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    try:
        if real.stat().st_uid == os.getuid():
            os.link(real, target)
            return
    except OSError:
        pass  # another file system, or one without hard links
    shutil.copyfile(real, target)


def _taken(name: str) -> NameTaken:
    return NameTaken(f"The store has a model '{name}' already; remove it, or choose another name.")
