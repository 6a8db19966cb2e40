"""Pulls repositories from a hub into the store: plans, fetches, verifies, publishes."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from model_store.disk import FLOOR_BYTES, check_room, link_or_copy, store_errors
from model_store.errors import BadFiles, BadName
from model_store.hub.api import Listing, list_files
from model_store.hub.choice import Choice, choose
from model_store.hub.connections import Connections
from model_store.hub.options import HubOptions
from model_store.hub.partials import Wanted, git_sha1
from model_store.hub.plan import Change, Plan, PlannedFile
from model_store.hub.retries import Throttle
from model_store.hub.transfer import PART, Fetcher
from model_store.inspection import inspect_texts
from model_store.manifest import ADAPTER, FILES, HUB, FileEntry, Manifest
from model_store.names import check_name, check_repo, check_revision, pull_folder
from model_store.pickles import convert
from model_store.progress import Counter, Progress
from model_store.store import ModelStore

__all__ = ["Change", "HubOptions", "Plan", "changes", "plan", "pull", "update"]

_HELD = ".held"


def never() -> bool:
    return False


def plan(
    store: ModelStore,
    repo: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    include: Sequence[str] = (),
    hub: HubOptions,
    allow_pickles: bool = False,
    cancelled: Callable[[], bool] = never,
) -> Plan:
    """Say what ``pull`` would do; fetch the small files that decide it, and keep nothing.

    Raises what ``pull`` raises before it fetches weights, but not NameTaken or NoSpace.
    """
    return _look(store, repo, revision, name, include, hub, allow_pickles, cancelled)[0]


def _look(
    store: ModelStore,
    repo: str,
    revision: str | None,
    name: str | None,
    include: Sequence[str],
    hub: HubOptions,
    allow_pickles: bool,
    cancelled: Callable[[], bool],
) -> tuple[Plan, Choice]:
    _check(repo, revision, name)
    with Connections(cancelled) as connections, tempfile.TemporaryDirectory() as folder:
        listing = list_files(repo, revision, hub, connections)
        work = _Work(store, listing, hub, connections, Path(folder))
        choice = choose(listing, include, work.read, allow_pickles=allow_pickles)
        kept = partial(_there, store, store.partial / pull_folder(repo))
        return _plan(store, listing, choice, name or repo, kept), choice


def pull(
    store: ModelStore,
    repo: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    include: Sequence[str] = (),
    hub: HubOptions,
    allow_pickles: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = never,
    planned: Callable[[Plan], None] = lambda _: None,
) -> Manifest:
    """Download a repository into the store, or go on where an earlier pull stopped.

    Every file is verified against the hub's hash. ``allow_pickles``: where there are no better
    weights, fetch those and convert them. ``planned`` is told what will be done. Raises BadName,
    NameTaken, BadFiles, DownloadError, NoSpace, PullRunning or PullCancelled.
    """
    _check(repo, revision, name)
    store.check_free(name or repo)
    with Connections(cancelled, hub.parallel) as connections:
        listing = list_files(repo, revision, hub, connections)
        with store.pulling(repo) as folder:
            work = _Work(store, listing, hub, connections, folder)
            choice = choose(listing, include, work.read, allow_pickles=allow_pickles)
            made = _plan(store, listing, choice, name or repo, partial(_there, store, folder))
            planned(made)
            check_room(folder, made.missing_bytes)
            work.count(made, progress)
            manifest = work.publish(choice, made.name, progress, cancelled)
            # Only now: until the model is in its place, a crash loses nothing.
            shutil.rmtree(folder)
    return manifest


def changes(
    store: ModelStore,
    name: str,
    *,
    revision: str | None = None,
    hub: HubOptions,
    allow_pickles: bool = False,
    cancelled: Callable[[], bool] = never,
) -> Change:
    """Say what ``update`` would change; fetch the small files that decide it, and keep nothing.

    Raises UnknownModel, BadFiles for a model that is not the hub's, and what ``plan`` raises.
    """
    manifest = store.get(name)
    repo = _source(manifest)
    made, choice = _look(store, repo, revision, name, (), hub, allow_pickles, cancelled)
    old = {entry.path: entry for entry in manifest.files}
    new = {file.path: file for file in choice.wanted}
    files = store.path(name)
    return Change(
        name=name,
        repo=made.repo,
        old_revision=manifest.revision,
        new_revision=made.revision,
        added=tuple(sorted(new.keys() - old.keys())),
        changed=tuple(
            path
            for path in sorted(new.keys() & old.keys())
            if not _is_same(new[path], old[path], files / path)
        ),
        removed=tuple(sorted(old.keys() - new.keys())),
        missing_bytes=made.missing_bytes,
    )


def update(
    store: ModelStore,
    name: str,
    *,
    revision: str | None = None,
    hub: HubOptions,
    allow_pickles: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = never,
    planned: Callable[[Plan], None] = lambda _: None,
) -> Change:
    """Fetch what differs between a model and its repository now, and replace it in one step.

    ``revision`` is what to follow, the main branch if it is left out. Until the end the old model
    is the one that is loaded. Raises UnknownModel and what ``pull`` raises.
    """
    change = changes(
        store, name, revision=revision, hub=hub, allow_pickles=allow_pickles, cancelled=cancelled
    )
    if change:
        pull(
            store.replacing(name),
            _source(store.get(name)),
            revision=change.new_revision,  # and no later one: what was shown is what comes
            name=name,
            hub=hub,
            allow_pickles=allow_pickles,
            progress=progress,
            cancelled=cancelled,
            planned=planned,
        )
    return change


def _source(manifest: Manifest) -> str:
    if not manifest.source.startswith(HUB):
        raise BadFiles(f"{manifest.name} did not come from the hub, so nothing can update it.")
    return manifest.source.removeprefix(HUB)


def _is_same(file: Wanted, entry: FileEntry, path: Path) -> bool:
    if file.size != entry.size:
        return False
    if file.sha256:
        return file.sha256 == entry.sha256
    digest = git_sha1(file.size)
    with suppress(OSError):  # what cannot be read is not the same
        digest.update(path.read_bytes())  # a text: weights have their SHA-256
    return digest.hexdigest() == file.git_sha1


def _check(repo: str, revision: str | None, name: str | None) -> None:
    check_repo(repo)
    if repo.startswith(("datasets/", "spaces/")):
        raise BadName(f"'{repo}' names a dataset or a space; only models can be pulled.")
    if revision is not None:
        check_revision(revision)
    if name is not None:
        check_name(name)


def _plan(
    store: ModelStore,
    listing: Listing,
    choice: Choice,
    name: str,
    there: Callable[[Wanted], int],
) -> Plan:
    known = {file.key: there(file) for file in choice.wanted}
    sizes = {file.key: file.size for file in choice.wanted}
    return Plan(
        repo=listing.repo,
        revision=listing.sha,
        name=name,
        files=tuple(PlannedFile(f.path, f.size, known[f.key]) for f in choice.wanted),
        total_bytes=sum(file.size for file in choice.wanted),
        missing_bytes=sum(sizes.values()) - sum(known.values()),
        free_bytes=max(0, shutil.disk_usage(store.partial).free - FLOOR_BYTES),
        kind=choice.kind,
        gated=listing.gated,
        notes=listing.notes,
    )


def _there(store: ModelStore, folder: Path, file: Wanted) -> int:
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


class _Work:
    """One pull: what the hub told, and how files get from there into a draft of the model."""

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
        if found := _stored(self._store, file):
            held = self._folder / f"{file.key}{_HELD}"
            _hold(found, held)
            return held if held.exists() else found
        return self._connections.call(lambda: self._fetcher.fetch(file)[0])

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
            if found := _stored(self._store, file):
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
