"""Imports folders in Hugging Face layout, and repositories of the hub's own cache."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.disk import check_room, link_or_copy, may_link, store_errors
from model_store.errors import BadFiles, BadName
from model_store.inspection import based, inspect, inspect_texts, model_files
from model_store.manifest import FILES, HUB, Manifest
from model_store.names import check_repo, check_revision
from model_store.pickles import convert, pickled
from model_store.progress import Progress
from model_store.selection import WEIGHTS, required

if TYPE_CHECKING:
    from model_store.store import ModelStore

_CACHED = "models--"  #: in the hub's cache, a repository's folder: models--org--name
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """Describes a folder to import, where its links may lead, and what it was downloaded from."""

    folder: Path
    blobs: tuple[Path, ...] = ()
    source: str = "import"
    revision: str | None = None


def import_folder(
    store: "ModelStore",
    path: Path,
    name: str,
    progress: Progress | None = None,
    *,
    allow_pickles: bool = False,
    base: str | None = None,
) -> Manifest:
    """Do what ``ModelStore.import_folder`` says."""
    store.check_free(name)
    with store_errors("The folder cannot be read"), store.draft() as folder:
        source = source_of(path)
        targets = _link_targets(source)
        selected = required(targets)
        pickles = []
        if allow_pickles and not any(file.endswith(WEIGHTS) for file in selected):
            pickles = pickled(targets)
        if pickles:
            inspect_texts(source.folder)
        else:
            based(inspect(source.folder), base)
        chosen = {file: targets[file] for file in [*selected, *pickles]}
        copied = [real for real in chosen.values() if not may_link(real, folder)]
        check_room(store.partial, sum(real.stat().st_size for real in copied))
        for file, real in chosen.items():
            link_or_copy(real, folder / FILES / file)
        if pickles:
            convert(folder / FILES, progress, confine=store.confine)
        return store.finish(
            folder,
            name,
            source=source.source,
            revision=source.revision,
            base=base,
            progress=progress,
        )


def source_of(path: Path) -> Source:
    """Return what to import of a folder: of a repository in the hub's cache, its main snapshot.

    Raises BadFiles.
    """
    if not path.is_dir():
        raise BadFiles("There is no such folder.")
    root = path.resolve()
    if root.name.startswith(_CACHED) and (root / "snapshots").is_dir():
        root = _snapshot(root)
    if root.parent.name != "snapshots":
        if names := sorted(each.parent.name for each in root.glob(f"{_CACHED}*/snapshots")):
            more = " ..." if len(names) > 5 else ""
            raise BadFiles(
                f"This is a cache of repositories; name one of {', '.join(names[:5])}{more}."
            )
        return Source(path)
    repository = root.parent.parent
    repo = _repo_of(repository.name)
    if repo is None or not _COMMIT.fullmatch(root.name):
        return Source(root, (repository / "blobs",))
    # Newer clients keep one more folder of blobs, for all repositories.
    blobs = (repository / "blobs", repository.parent / "blobs")
    return Source(root, blobs, f"{HUB}{repo}", root.name)


def _snapshot(repository: Path) -> Path:
    """Return the snapshot of the branch main, else the only one there is."""
    try:
        main = check_revision((repository / "refs" / "main").read_text().strip())
        if "/" not in main and (repository / "snapshots" / main).is_dir():
            return (repository / "snapshots" / main).resolve()
    except (OSError, UnicodeDecodeError, BadName):
        pass
    there = [each for each in (repository / "snapshots").iterdir() if each.is_dir()]
    if len(there) != 1:
        raise BadFiles(
            "The cache has several snapshots of this repository and none is its main one; name "
            "the folder of one below snapshots/."
            if there
            else "The cache has no snapshot of this repository; download it again."
        )
    return there[0].resolve()


def _repo_of(folder: str) -> str | None:
    """Return the repository that a folder of the hub's cache is named for."""
    parts = folder.removeprefix(_CACHED).split("--")
    if not folder.startswith(_CACHED) or len(parts) > 2:
        return None
    try:
        return check_repo("/".join(parts))
    except BadName:
        return None


def _link_targets(source: Source) -> dict[str, Path]:
    """Return the path of each file and where it lies; links may not leave the folder.

    Exempt are a hub cache's snapshots, which link to the blobs beside them.
    """
    root = source.folder.resolve()
    allowed = [root, *source.blobs]
    targets = {}
    for path in model_files(root):
        try:
            target = targets[path] = (root / path).resolve()
        except RuntimeError as error:
            raise BadFiles(f"{path[:120]} is a link to itself.") from error
        if not any(target.is_relative_to(one) for one in allowed):
            raise BadFiles(f"{path[:120]} is a link that leaves the folder.")
        if not target.is_file():
            raise BadFiles(f"{path[:120]} is not a file, or a link to nothing.")
    return targets
