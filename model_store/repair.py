"""Repairs a model: what differs from its manifest is taken from another model, or fetched."""

import glob
from collections.abc import Callable, Sequence

from model_store.errors import BadFiles
from model_store.manifest import HUB, Manifest
from model_store.progress import Progress
from model_store.store import ModelStore
from model_store.verification import Difference, differences, mend, set_aside

#: fetches a model again into the store that it is given: its manifest, and the paths to take,
#: as patterns for ``hub.pull``'s ``include``
Fetch = Callable[[ModelStore, Manifest, Sequence[str]], Manifest]


def repair(
    store: ModelStore, name: str, fetch: Fetch, progress: Progress | None = None
) -> list[Difference]:
    """Make a model whole again, and those that share its damaged files; return what differed.

    ``fetch`` is called if no other model has the files: a pull into the given store takes the old
    one's place, and finds all that is whole in the blobs. Raises UnknownModel, BadFiles if the
    files can be had from nowhere, and what ``fetch`` raises.
    """
    found = differences(store, [name], progress)[name]
    set_aside(store, name, found)
    manifest = store.get(name)
    if mend(store, name):
        if not manifest.source.startswith(HUB):
            raise BadFiles(
                f"{name} cannot be repaired: it did not come from the hub. Remove it, and add it "
                "again from where it came."
            )
        for entry in manifest.files:  # a pull looks for what is whole among the blobs
            _ = store.blobs.find(entry.sha256) or store.blobs.copied(entry.sha256)
        paths = [glob.escape(entry.path) for entry in manifest.files]
        fetch(store.replacing(name), manifest, paths)
    for other in {each for difference in found for each in difference.shared_with}:
        mend(store, other)
    return found
