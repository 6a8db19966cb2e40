"""Shows the state of models by name, those of LoRAs as the workers have it that compute them."""

from collections.abc import Mapping

from bitinglip.scheduling.models.manager import ModelManager
from bitinglip.scheduling.models.state import ModelState, Replica
from model_store.manifest import Manifest
from workers import protocol


class ModelViews:
    """Answers from the manager's state, and changes none."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def _state_of(self, name: str) -> ModelState | None:
        """Return the state of the model whose workers run a model's requests, if it has one."""
        return self._manager.models.get(self._manager.host(name))

    def status(self, name: str) -> str:
        model_state = self._state_of(name)
        return model_state.status if model_state else "available"

    def cause(self, name: str) -> str | None:
        model_state = self._state_of(name)
        return model_state.explain(self._manager.clock()) if model_state else None

    def ready(self, name: str) -> protocol.Ready | None:
        """Return the worker's report on a model; context and dtype may differ from its files'."""
        model_state = self._state_of(name)
        return model_state.ready if model_state else None

    def progress(self, name: str) -> float | None:
        """Return the progress of a model's load from 0 to 1; None if no load runs."""
        model_state = self._state_of(name)
        loading = model_state.loading if model_state else []
        return max((replica.progress for replica in loading), default=None)

    def copying(self, name: str) -> protocol.CopyProgress | None:
        """Return how a model's files come to the node that is to load it; None if none do."""
        model_state = self._state_of(name)
        loading = model_state.loading if model_state else []
        coming = (each.copying for each in loading if each.copying is not None)
        return max(coming, key=lambda each: each.bytes / each.total, default=None)

    def load_times(self, name: str) -> Mapping[str, float]:
        """Return how long the last loads took in seconds, by where the files came from."""
        model_state = self._state_of(name)
        return dict(model_state.load_times.items()) if model_state else {}

    def idle_seconds(self, name: str) -> float | None:
        """Return the seconds since a loaded model was used; None if it is in use or not loaded."""
        model_state = self._state_of(name)
        return model_state.idle_seconds(self._manager.clock()) if model_state else None

    def replicas(self, name: str) -> list[Replica]:
        model_state = self._state_of(name)
        return list(model_state.replicas.values()) if model_state else []

    def in_use(self, name: str) -> bool:
        """Return True if the model has workers or requests."""
        own = self._manager.models.get(name)
        return bool(own and own.replicas) or self._manager.busy(name) > 0

    def why_merged(self, manifest: Manifest) -> str | None:
        """Say why a LoRA has a worker of its own; None if its base's computes it."""
        return self._manager.hosting.why_merged(manifest)

    async def record_uses(self) -> None:
        """Record in the store that LoRAs were in use, which no load and no stop of theirs tells."""
        await self._manager.hosting.record_uses()
