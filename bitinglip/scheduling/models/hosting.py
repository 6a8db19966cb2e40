"""Tells which model's workers run the requests of a model: a LoRA's are its base's, if they can.

The store answers from memory, so a request can ask.
"""

from bitinglip.settings import Model, Settings
from model_store.adapter_links import stamped
from model_store.adapters import adapters_of
from model_store.manifest import Manifest
from model_store.store import ModelStore
from workers.engines.defaults import LORA_RANK_STEP
from workers.protocol import TextLora

#: What of a LoRA's settings its base's worker leaves to it; all else is for a worker of its own.
_SHARED = {"allow_pickles", "preload", "sampling", "text"}
_SHARED_TEXT = {"prefix_cache"}
_DEFAULTS = Model()
_READ_ONLY = "the store may only be read, so its base's worker cannot be let read it"


class Hosting:
    """Answers for the models of a store under the server's settings."""

    def __init__(self, settings: Settings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._used: set[str] = set()  #: LoRAs, since that was recorded last

    def host(self, name: str) -> str:
        """Return the model whose workers run this one's requests; itself if it is not known."""
        # Not by a look at the disk for a name that has gone: the books of its queue are kept.
        manifest = self._store.listing.all().get(name)
        if manifest is None or manifest.adapter_of is None or not self._is_hosted(manifest):
            return name
        return manifest.adapter_of

    def _is_hosted(self, manifest: Manifest) -> bool:
        return manifest.kind == "text" and self.why_merged(manifest) is None

    def lora(self, name: str) -> TextLora:
        """Return what a worker of its base is told of a LoRA: of one that has gone meanwhile, a
        path that it finds nothing at."""
        self._used.add(name)
        manifest, path = self._store.listing.all().get(name), self._store.adapter_links.path(name)
        if manifest is None or path is None:
            return TextLora(path="")
        return TextLora(path=path, stamps={e.path: (e.size, e.mtime_ns) for e in stamped(manifest)})

    async def record_uses(self) -> None:
        """Record that LoRAs were in use which workers of their bases have computed."""
        while self._used:
            await self._store.record_use(self._used.pop())

    def why_merged(self, manifest: Manifest) -> str | None:
        """Say why a LoRA has a worker of its own; None if its base's computes it."""
        base = manifest.adapter_of
        if base is None or manifest.kind != "text":
            return None
        own = self._settings.model(base).text
        if not own.max_loras:
            return f"models.{base}.text.max_loras is 0"
        if setting := _of_a_worker(self._settings.model(manifest.name)):
            return f"models.{manifest.name}.{setting} is set"
        if manifest.lora_rank > own.max_lora_rank:
            most = own.max_lora_rank
            return f"its rank is {manifest.lora_rank}, models.{base}.text.max_lora_rank {most}"
        if manifest.merged is None and self._store.adapter_links.path(manifest.name) is None:
            return _READ_ONLY
        return manifest.merged

    def adapters(self, name: str) -> list[Manifest]:
        """Return the LoRAs whose requests a model's workers run."""
        there = adapters_of(name, self._store.listing.all())
        return [each for each in there if self._is_hosted(each)]

    def lora_numbers(self, manifest: Manifest) -> int:
        """Count about the numbers that a model's worker holds for its LoRAs beside its weights.

        Each slot has room for the largest rank in all layers that are changed, and their number
        doubles when they grow, up to as many as a worker holds.
        """
        if manifest.kind != "text" or manifest.adapter_of is not None:
            return 0
        adapters = self.adapters(manifest.name)
        if not adapters:
            return 0
        widths = ((each.parameters - manifest.parameters) / each.lora_rank for each in adapters)
        rank = max(each.lora_rank for each in adapters)
        most = self._settings.model(manifest.name).text.max_loras
        slots = min(most, 1 << (len(adapters) - 1).bit_length())
        return int(max(widths) * slots * -(-rank // LORA_RANK_STEP) * LORA_RANK_STEP)


def _of_a_worker(own: Model) -> str | None:
    """Return the first setting of a LoRA that only a worker of its own can keep to, if any is."""
    if own.text.merge_lora:
        return "text.merge_lora"
    for name in sorted(own.model_fields_set - _SHARED):
        if getattr(own, name) != getattr(_DEFAULTS, name):
            return name
    for name in sorted(own.text.model_fields_set - _SHARED_TEXT):
        if getattr(own.text, name) != getattr(_DEFAULTS.text, name):
            return f"text.{name}"
    return None
