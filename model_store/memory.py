from dataclasses import dataclass

from model_store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Wish:
    device: str
    dtype: str | None = None
    max_context: int | None = None
    kv_cache_bytes: int | None = None
    max_batch: int | None = None
    fake_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    weights: int
    cache: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.overhead


def estimate(manifest: Manifest, wish: Wish) -> Footprint:
    if wish.fake_bytes is not None:
        return Footprint(wish.fake_bytes, 0, 0, 0)
    return Footprint(manifest.weight_bytes, 512 << 20, 64 << 20, 350 << 20)
