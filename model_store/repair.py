"""Repairs a model: what differs from its manifest is taken from another model, or fetched."""

import glob
from collections.abc import Callable, Sequence

from model_store.errors import BadFiles
from model_store.manifest import HUB, Manifest
from model_store.progress import Progress
from model_store.store import ModelStore
from model_store.verification import Difference, differences, is_elsewhere, mend

#: fetches a model again into the store that it is given: its manifest, and the paths to take,
#: as patterns for ``hub.pull``'s ``include``
Fetch = Callable[[ModelStore, Manifest, Sequence[str]], Manifest]


def repair(
    store: ModelStore, name: str, fetch: Fetch, progress: Progress | None = None
) -> list[Difference]:
    """Make a model whole again, and those that share its damaged files; return what differed.

    ``fetch`` is called if no other model has the files: a pull into the given store takes the old
    one's place, and finds all that is whole in the blobs. Until then, and if that fails, all files
    stay as they are. Raises UnknownModel, BadFiles if the files can be had from nowhere, and what
    ``fetch`` raises.
    """
    found = differences(store, [name], progress)[name]
    manifest = store.get(name)
    differing = {each.path for each in found if each.what != "new"}
    damaged = [entry for entry in manifest.files if entry.path in differing]
    lacking = [entry for entry in damaged if not is_elsewhere(store, name, entry)]
    if not lacking:
        for each in found:
            if each.what == "new":
                (store.path(name) / each.path).unlink(missing_ok=True)
        mend(store, name, {entry.sha256 for entry in damaged})
    else:
        _fetch_all(store, manifest, fetch)
    for other in {each for difference in found for each in difference.shared_with}:
        mend(store, other, {entry.sha256 for entry in damaged})
    return found


def _fetch_all(store: ModelStore, manifest: Manifest, fetch: Fetch) -> None:
    if not manifest.source.startswith(HUB):
        raise BadFiles(
            f"{manifest.name} cannot be repaired: it did not come from the hub. Its files are as "
            "they were; remove it, and add it again from where it came."
        )
    for entry in manifest.files:  # a pull looks for what is whole among the blobs
        _ = store.blobs.find(entry.sha256) or store.blobs.copied(entry.sha256)
    paths = [glob.escape(entry.path) for entry in manifest.files]
    fetch(store.replacing(manifest.name), manifest, paths)
