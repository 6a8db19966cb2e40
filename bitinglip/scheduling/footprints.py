from dataclasses import dataclass

from model_store.manifest import Manifest
from model_store.memory import Footprint, Wish, estimate


@dataclass(frozen=True, slots=True)
class Need:
    bytes: int
    load_seconds: float | None
    measured: bool
    footprint: Footprint


class Footprints:
    def need(self, manifest: Manifest, wish: Wish) -> Need:
        f = estimate(manifest, wish)
        return Need(f.total, None, False, f)

    def observe(
        self,
        manifest: Manifest,
        wish: Wish,
        *,
        memory_bytes: int,
        load_seconds: float | None = None,
    ) -> None: ...
    def raise_floor(self, manifest: Manifest, wish: Wish, at_least: int) -> None: ...
    async def flush(self) -> None: ...
