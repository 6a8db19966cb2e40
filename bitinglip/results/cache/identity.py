"""Tells which requests have the same answer: the cache's keys.

A key covers the whole message to the worker, after validation and defaults, the model's files and
settings, what the guard does, and who may share the answer. A request's id, its stream and its
labels are no part of it.
"""

import hashlib
import operator
from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from bitinglip.access.keys import Caller
from bitinglip.scheduling.job import Job
from bitinglip.settings import Model, Settings
from model_store.adapters import adapters_of
from model_store.errors import UnknownModel
from model_store.manifest import Manifest
from model_store.store import ModelStore

Manifests = tuple[Manifest | None, ...]

_encode = msgspec.msgpack.Encoder().encode


def repeatable(job: Job) -> bool:
    """Return whether the same request would have the same answer.

    Answers with the addresses of files are none: the files are a task's own, and they expire.
    """
    return job.output != "url" and job.traits.repeatable(job.seeded)


class Identity:
    """Makes keys. The digests of models are made once for each manifest and each settings."""

    def __init__(self, settings: Settings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._models: dict[str, tuple[Manifests, Model, bytes]] = {}

    def key(self, job: Job, caller: Caller, uploads: Mapping[str, str]) -> bytes:
        """Return the key of a request. Raises UnknownModel."""
        model = self._model(job.model)
        work = job.traits.canonical(uploads)
        guarded = (self._sharing(caller), model, work, job.guard)
        return hashlib.sha256(_encode(guarded)).digest()

    def _sharing(self, caller: Caller) -> tuple[Any, ...]:
        """Return what those callers have in common who may share an answer."""
        match self._settings.cache.scope:
            case "key":  # with what the key may do: a change of that starts an empty cache
                scopes = sorted(caller.scopes)
                return "key", caller.key_id, caller.tier, scopes, caller.models
            case "tier":
                return "tier", caller.tier
            case "all":
                return ("all",)
            case scope:
                assert_never(scope)

    def _model(self, name: str) -> bytes:
        own = self._settings.model(name)
        manifest = self._store.get(name)
        manifests = (manifest, self._vocoder(own), *self._beside(manifest))
        known = self._models.get(name)
        if known is not None and known[1] is own and _same(known[0], manifests):
            return known[2]
        digest = hashlib.sha256(_encode((name, own.model_dump(mode="json"))))
        for part in manifests:
            if part is not None:
                files = sorted((each.path, each.sha256) for each in part.files)
                facts = (part.revision, part.engine, files)
                digest.update(_encode(facts))
        self._models[name] = manifests, own, digest.digest()
        return digest.digest()

    def _beside(self, manifest: Manifest) -> list[Manifest]:
        """Return what an answer depends on besides the model: an adapter's base, the LoRAs of an
        image model."""
        if manifest.adapter_of is not None:
            return [self._store.get(manifest.adapter_of)]
        if manifest.kind != "image":
            return []
        return adapters_of(manifest.name, self._store.listing.all())

    def _vocoder(self, own: Model) -> Manifest | None:
        """Return the manifest of the vocoder that speaks for the model, if it is in the store."""
        if own.speech.vocoder is None:
            return None
        try:
            return self._store.get(own.speech.vocoder)
        except UnknownModel:
            return None


def _same(known: Manifests, present: Manifests) -> bool:
    return len(known) == len(present) and all(map(operator.is_, known, present))
