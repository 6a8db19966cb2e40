"""Assembles a model: brings each file from the store or the hub into a draft, and publishes it."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from model_store.disk import link_or_copy, store_errors
from model_store.errors import BadFiles
from model_store.hub.api import Listing
from model_store.hub.choice import Choice
from model_store.hub.connections import Connections
from model_store.hub.options import HubOptions
from model_store.hub.partials import Wanted
from model_store.hub.plan import Plan
from model_store.hub.retries import Throttle
from model_store.hub.transfer import PART, Fetcher
from model_store.inspection import inspect_texts
from model_store.manifest import ADAPTER, FILES, HUB, Manifest
from model_store.pickles import convert
from model_store.progress import Counter, Progress
from model_store.store import ModelStore

_HELD = ".held"
_SMALL = 1 << 26  #: bytes that are read in a moment: texts, whose damage would look like another's


def bytes_there(store: ModelStore, folder: Path, file: Wanted) -> int:
    """Return how many bytes of a file need not be fetched."""
    if _stored(store, file):
        return file.size
    for end in ("", _HELD, PART):
        path = folder / f"{file.key}{end}"
        with suppress(OSError):
            return min(file.size, path.stat().st_size)
    return 0


def _stored(store: ModelStore, file: Wanted) -> Path | None:
    """Return the file's content if the store has it already."""
    found = (
        store.blobs.find(file.sha256) if file.sha256 else store.blobs.find_git(file.git_sha1 or "")
    )
    with suppress(OSError):  # a clean-up or a removal has taken it
        return found if found and found.stat().st_size == file.size else None
    return None


def _whole(store: ModelStore, file: Wanted) -> Path | None:
    """Return the file's content if the store has it; a small one is read, lest it has rotted."""
    found = _stored(store, file)
    if found and file.size <= _SMALL:
        return store.blobs.read_again(found.name)
    return found


class Assembly:
    """Takes one pull's files from where they are into a draft of the model."""

    def __init__(
        self,
        store: ModelStore,
        listing: Listing,
        hub: HubOptions,
        connections: Connections,
        folder: Path,
    ) -> None:
        self._store = store
        self._listing = listing
        self._connections = connections
        self._folder = folder
        self._fetcher = Fetcher(
            connections,
            folder,
            Counter(None, {}),
            Throttle(hub.bytes_per_second, connections.stopped),
            listing.token,
        )

    def count(self, made: Plan, progress: Progress | None) -> None:
        """Begin to report the bytes of the planned files."""
        sizes = {file.path: file.size for file in made.files}
        there = {file.path: file.there for file in made.files}
        self._fetcher.counter = Counter(progress, sizes, there)

    def read(self, file: Wanted) -> Path:
        """Return a small file, from the store or else from the hub."""
        if found := _whole(self._store, file):
            held = self._folder / f"{file.key}{_HELD}"
            _hold(found, held)
            return held if held.exists() else found
        return self._connections.call(lambda: self._fetcher.fetch(file)[0])

    def start(self, file: Wanted, count: int) -> bytes | None:
        """Return the first bytes of a file, from the store or else from the hub; None: unknown."""
        if found := _stored(self._store, file):
            with suppress(OSError), found.open("rb") as opened:
                return opened.read(count)
        return self._connections.call(lambda: self._fetcher.start(file, count))

    def publish(
        self,
        choice: Choice,
        name: str,
        progress: Progress | None,
        cancelled: Callable[[], bool],
    ) -> Manifest:
        """Fetch all files and make them a model of the store."""
        with store_errors("The model cannot be stored"), self._store.draft() as draft:
            files = draft / FILES
            known = self._fill(files, choice.texts)
            if choice.heavy:
                if choice.kind != ADAPTER:  # of one, the config was checked as it was chosen
                    inspect_texts(files)  # what they forbid is refused before any weights come
                known |= self._fill(files, choice.heavy)
            try:
                if choice.pickles:
                    convert(files, progress, cancelled, confine=self._store.confine)
                return self._store.finish(
                    draft,
                    name,
                    source=f"{HUB}{self._listing.repo}",
                    revision=self._listing.sha,
                    known=known,
                )
            except BadFiles:
                # Whole, and of no use: the next pull of this would be refused, too.
                shutil.rmtree(files)
                shutil.rmtree(self._folder)
                for sha256 in known.values():
                    self._store.blobs.drop(sha256)
                raise

    def _fill(self, files: Path, wanted: Sequence[Wanted]) -> dict[str, str]:
        """Put the files in place, several at once; return their SHA-256."""
        alike: dict[str, list[Wanted]] = {}
        for file in wanted:
            alike.setdefault(file.key, []).append(file)
        digests: dict[str, str] = {}

        def bring(same: list[Wanted]) -> None:
            sha256 = self._bring(same[0])
            for file in same:
                self._link(sha256, same[0], files / file.path)
                self._fetcher.counter.reach(file.path, file.size)
                digests[file.path] = sha256

        # The largest first, so that none of them is fetched alone at the end.
        ordered = sorted(alike.values(), key=lambda same: -same[0].size)
        self._connections.run([partial(bring, same) for same in ordered])
        return digests

    def _link(self, sha256: str, file: Wanted, target: Path) -> None:
        try:
            self._store.blobs.link(sha256, target)
        except FileNotFoundError:  # a clean-up took the blob's name, and left ours
            link_or_copy(self._folder / f"{file.key}{_HELD}", target)

    def _bring(self, file: Wanted) -> str:
        """Make a file's content a blob of the store; return its SHA-256."""
        blobs = self._store.blobs
        held = self._folder / f"{file.key}{_HELD}"
        with store_errors(f"{file.path} cannot be written"):
            if found := _whole(self._store, file):
                _hold(found, held)
                return found.name
            with suppress(FileNotFoundError):
                held.replace(self._folder / file.key)  # of a pull whose blob a clean-up took
            path, sha256 = self._fetcher.fetch(file)
            _hold(path, held)
            blobs.take(path, sha256, file.git_sha1)
            return sha256


def _hold(path: Path, held: Path) -> None:
    """Give a content a second name, so that no clean-up takes it while it is in no model yet."""
    with suppress(OSError):  # it is there already, or the file system has no links
        os.link(path, held)
