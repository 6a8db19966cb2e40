"""Lists the files that loads name, by their contents, as the gateway has them."""

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from workers.nodes.messages import HeldTree, StoreFacts, Tree, TreeFile
from workers.nodes.models.trees import key_of

_CHUNK = 1 << 20
_MOST_HASHES = 4096  #: of files that no manifest lists

#: of a folder of the store, the files that its manifest lists: size, time of change, SHA-256
Listed = Callable[[Path], Mapping[str, tuple[int, int, str]]]
_Stamp = tuple[int, int, int, int]


class SourceChanged(Exception):
    """A file is not what it was when it was listed, or is gone."""


class StoredModel(NamedTuple):
    """Names a model of the store."""

    name: str
    version: object  #: another one once its manifest is


class Compared(NamedTuple):
    """Says what copies on a node are worth to the store that they came from."""

    copied: frozenset[str]  #: models whose copies are whole and as they are now
    unwanted: tuple[str, ...]  #: keys


NOT_COMPARED = Compared(frozenset(), ())


class ModelSource:
    """Knows the contents of files; reads those that no manifest lists. Blocks: for threads."""

    def __init__(
        self,
        root: Path,
        origin: str,
        listed: Listed,
        models: Callable[[], Mapping[str, StoredModel]],
    ) -> None:
        """``root`` is the folder of the store; ``origin`` names it to nodes; ``models`` returns its
        models by the folders of their files."""
        self.root, self.origin = root, origin
        self._listed = listed
        self._models = models
        self._hashes: OrderedDict[_Stamp, str] = OrderedDict()
        self._keys: dict[tuple[str, object], str | None] = {}  #: of the models there are

    def tree(self, source: str) -> tuple[Tree, dict[str, Path]]:
        """Return what is in a folder, or the one file, and where each content can be read.

        Of a model these are the files that its manifest lists, by which copies are known. Raises
        SourceChanged where there is nothing, or less than the manifest lists, or OSError.
        """
        top = Path(source)
        files, paths, listed = [], {}, self._listed(top)
        for path in sorted(_files_of(top)):
            name = path.name if path == top else str(path.relative_to(top))
            if listed and name not in listed:
                continue
            sha256, size = self._digest(path, listed.get(name))
            files.append(TreeFile(name, size, sha256))
            paths[sha256] = path
        if not top.exists() or listed.keys() - {each.path for each in files}:
            raise SourceChanged
        return Tree(source=source, is_file=top.is_file(), files=tuple(files)), paths

    def compare(self, stores: Sequence[StoreFacts]) -> list[Compared]:
        """Say what of the files on each node are as this store has them, whoever brought them, and
        what came from here that it has no longer: its folder is gone, or its manifest lists others.
        Neither while the store is not there at all. Raises OSError."""
        if not any(each.held or each.whole for each in stores) or not self.root.is_dir():
            return [NOT_COMPARED for _ in stores]
        models = self._models()
        keys = self._keys_of(models)
        for source in {tree.source for each in stores for tree in each.held} - keys.keys():
            keys[source] = self._key(source)
        return [
            Compared(
                frozenset(each.name for source, each in models.items() if keys[source] in whole),
                tuple(each.key for each in store.held if _is_gone(each, keys[each.source])),
            )
            for store in stores
            for whole in (set(store.whole),)
        ]

    def _keys_of(self, models: Mapping[str, StoredModel]) -> dict[str, str | None]:
        """Return what the files of models are called; only manifests that are new are read."""
        known, self._keys = self._keys, {}
        for source, (_, version) in models.items():
            self._keys[source, version] = known.get((source, version)) or self._key(source)
        return {source: key for (source, _), key in self._keys.items()}

    def _key(self, source: str) -> str | None:
        """Return what the files are called that a manifest lists of a folder; None for others."""
        listed = self._listed(Path(source)).items()
        files = [TreeFile(path, size, sha256) for path, (size, _, sha256) in listed]
        return key_of(files) if files else None

    def _digest(self, path: Path, listed: tuple[int, int, str] | None) -> tuple[str, int]:
        """Return a file's hash and size. Raises SourceChanged or OSError."""
        found = path.stat()
        if listed is not None and listed[1] and listed[:2] == (found.st_size, found.st_mtime_ns):
            return listed[2], found.st_size
        stamp = _stamp(found)
        if (known := self._hashes.get(stamp)) is None:
            digest = hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                while piece := file.read(_CHUNK):
                    digest.update(piece)
                if _stamp(os.fstat(file.fileno())) != stamp:
                    raise SourceChanged
            known = self._hashes[stamp] = digest.hexdigest()
        self._hashes.move_to_end(stamp)
        if len(self._hashes) > _MOST_HASHES:
            self._hashes.popitem(last=False)
        return known, found.st_size


def _is_gone(held: HeldTree, key: str | None) -> bool:
    """Return True for files that are called something else now, or are not there."""
    if key is not None:
        return key != held.key
    try:
        return not Path(held.source).exists()
    except OSError:  # a name that is too long, or a folder that is closed: nothing is known of it
        return False


def _files_of(top: Path) -> Iterator[Path]:
    if top.is_file():
        yield top
    for folder, _, names in os.walk(top):
        for path in (Path(folder, name) for name in names):
            if path.is_file():  # a link of the operator's is followed
                yield path


def _stamp(found: os.stat_result) -> _Stamp:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def has_stamps(folder: Path, stamps: Mapping[str, tuple[int, int]]) -> bool:
    """Return True if files have the sizes and times of change that the store knows of them."""
    try:
        found = {name: (folder / name).stat() for name in stamps}
    except OSError:
        return False
    return all(
        each.st_size == stamps[name][0]
        and each.st_mtime_ns in (stamps[name][1], stamps[name][1] // 10**9 * 10**9)
        for name, each in found.items()
    )


def open_source(path: Path, size: int, offset: int) -> int:
    """Open a file of this size at a place in it. Raises SourceChanged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceChanged from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        os.close(fd)
        raise SourceChanged
    os.lseek(fd, offset, os.SEEK_SET)
    return fd
