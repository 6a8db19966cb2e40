"""Pulls repositories from a hub into the store: plans, fetches, verifies, publishes."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from model_store.disk import FLOOR_BYTES, check_room
from model_store.errors import NoSuchRepository
from model_store.hub.ahead import expected_model
from model_store.hub.api import Listing, address_of, list_files
from model_store.hub.assembly import Assembly, bytes_there
from model_store.hub.choice import Choice, choose
from model_store.hub.connections import Connections
from model_store.hub.near_names import near_names
from model_store.hub.options import HubOptions
from model_store.hub.partials import Wanted, git_sha1
from model_store.hub.plan import Change, Plan, PlannedFile
from model_store.hub.request import PullRequest, request_again
from model_store.manifest import FileEntry, Manifest
from model_store.names import pull_folder
from model_store.progress import Progress
from model_store.store import ModelStore

__all__ = [
    "Change",
    "HubOptions",
    "Plan",
    "PullRequest",
    "changes",
    "plan",
    "pull",
    "request_again",
    "update",
]


def never() -> bool:
    return False


def plan(store: ModelStore, request: PullRequest, *, cancelled: Callable[[], bool] = never) -> Plan:
    """Say what ``pull`` would do; fetch the small files that decide it, and keep nothing.

    Raises what ``pull`` raises before it fetches weights, but not NameTaken or NoSpace.
    """
    return _look(store, request, cancelled, ahead=True)[0]


def _look(
    store: ModelStore, request: PullRequest, cancelled: Callable[[], bool], *, ahead: bool
) -> tuple[Plan, Choice]:
    """Return the plan and the choice of files; ``ahead``: with what decides the memory."""
    request.check()
    with _connections(request, cancelled) as connections, tempfile.TemporaryDirectory() as folder:
        listing = _list(store, request, connections)
        work = Assembly(store, listing, request.hub, connections, Path(folder))
        choice = choose(listing, request.include, work.read, allow_pickles=request.allow_pickles)
        kept = partial(bytes_there, store, store.partial / pull_folder(request.repo))
        made = _plan(store, listing, choice, request.model, kept)
        return (_with_expected(made, listing, choice, work) if ahead else made), choice


def pull(
    store: ModelStore,
    request: PullRequest,
    progress: Progress | None = None,
    *,
    cancelled: Callable[[], bool] = never,
    planned: Callable[[Plan], None] = lambda _: None,
) -> Manifest:
    """Download a repository into the store, or go on where an earlier pull stopped.

    Every file is verified against the hub's hash. ``planned`` is told what will be done. Raises
    BadName, NameTaken, BadFiles, DownloadError, NoSpace, PullRunning or PullCancelled.
    """
    request.check()
    store.check_free(request.model)
    with _connections(request, cancelled) as connections:
        listing = _list(store, request, connections)
        with store.pulling(request.repo) as folder:
            work = Assembly(store, listing, request.hub, connections, folder)
            choice = choose(
                listing, request.include, work.read, allow_pickles=request.allow_pickles
            )
            kept = partial(bytes_there, store, folder)
            made = _plan(store, listing, choice, request.model, kept)
            planned(_with_expected(made, listing, choice, work))
            check_room(folder, made.missing_bytes)
            work.count(made, progress)
            manifest = work.publish(choice, made.name, progress, cancelled)
            # Only now: until the model is in its place, a crash loses nothing.
            shutil.rmtree(folder)
    return manifest


def changes(
    store: ModelStore, request: PullRequest, *, cancelled: Callable[[], bool] = never
) -> Change:
    """Say what ``update`` would change; fetch the small files that decide it, and keep nothing.

    Raises UnknownModel and what ``plan`` raises.
    """
    manifest = store.get(request.model)
    made, choice = _look(store, request, cancelled, ahead=False)
    old = {entry.path: entry for entry in manifest.files}
    new = {file.path: file for file in choice.wanted}
    files = store.path(request.model)
    return Change(
        name=request.model,
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
    request: PullRequest,
    progress: Progress | None = None,
    *,
    cancelled: Callable[[], bool] = never,
    planned: Callable[[Plan], None] = lambda _: None,
) -> Change:
    """Fetch what differs between a model and its repository now, and replace it in one step.

    ``request`` is that of ``request_again``. Until the end the old model is the one that is
    loaded. Raises UnknownModel and what ``pull`` raises.
    """
    change = changes(store, request, cancelled=cancelled)
    if change:
        pull(
            store.replacing(request.model),
            request.at(change.new_revision),  # and no later one: what was shown is what comes
            progress,
            cancelled=cancelled,
            planned=planned,
        )
    return change


def _connections(request: PullRequest, cancelled: Callable[[], bool]) -> Connections:
    return Connections(cancelled, request.hub.parallel, request.hub.min_bytes_per_second)


def _list(store: ModelStore, request: PullRequest, connections: Connections) -> Listing:
    """Ask the hub for the files. Raises as ``list_files`` does, and names what may be meant."""
    try:
        return list_files(request.repo, request.revision, request.hub, connections)
    except NoSuchRepository as error:
        address = address_of(request.hub)
        near = connections.call(lambda: near_names(request.repo, store, address, connections))
        if not near:
            raise
        told = "; ".join(near)
        raise NoSuchRepository(
            f"{error.message} Names like it, of which you may want one: {told}."
        ) from error


def _is_same(file: Wanted, entry: FileEntry, path: Path) -> bool:
    if file.size != entry.size:
        return False
    if file.sha256:
        return file.sha256 == entry.sha256
    digest = git_sha1(file.size)
    with suppress(OSError):  # what cannot be read is not the same
        digest.update(path.read_bytes())  # a text: weights have their SHA-256
    return digest.hexdigest() == file.git_sha1


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


def _with_expected(made: Plan, listing: Listing, choice: Choice, work: Assembly) -> Plan:
    return replace(made, expected=expected_model(choice, listing, made.name, work.read, work.start))
