"""Tells models' files again, where an older version has looked at them and told less.

Read are configs and the headers of weights, no weights. What has changed since it was taken in is
left to ``verification``.
"""

import logging

import msgspec

from model_store.errors import StoreError
from model_store.hashes import check_unchanged
from model_store.inspection import refreshed
from model_store.locks import held
from model_store.manifest import FACTS, FILES, Manifest
from model_store.store import ModelStore
from model_store.verification import rewrite

log = logging.getLogger(__name__)


def told_before(store: ModelStore) -> list[str]:
    """Return the models whose facts are of an older version, by what the disk holds now."""
    return [name for name in store.names() if _is_old(_manifest(store, name))]


def reread(store: ModelStore, name: str) -> bool:
    """Tell a model's files again; return whether its manifest says more or other things now.

    One that is gone, has changed, may not be written, or would be refused today stays as it is.
    """
    try:
        folder = store.folder(name)
        with held(folder, shared=True):
            manifest = _manifest(store, name)
            if manifest is None or not _is_old(manifest):
                return False
            check_unchanged(manifest, folder / FILES)
            told = refreshed(folder / FILES, manifest)
            if not _is_old(told):
                rewrite(store, told)
                return msgspec.structs.replace(told, facts=manifest.facts) != manifest
    except (StoreError, OSError):
        return False
    except Exception:  # a hostile file may break any parser; the start goes on, as with old facts
        log.exception("the files of %s could not be looked at again", name)
    return False


def _manifest(store: ModelStore, name: str) -> Manifest | None:
    try:
        return store.read(name)
    except StoreError:
        return None


def _is_old(manifest: Manifest | None) -> bool:
    return manifest is not None and manifest.facts < FACTS
