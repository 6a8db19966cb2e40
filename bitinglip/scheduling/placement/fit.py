"""Whether a model fits, where, after whom, and with which settings it would. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitinglip.scheduling.placement.estimate import (
    OFFLOADS,
    LoadConfig,
    cache_bytes_per_token,
    estimate,
)
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from model_store.manifest import Manifest
from workers.engines.defaults import IMAGE_BATCH, TEXT_ROWS

_CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048)
_ROWS = (32, 16, 8, 4, 2, 1)
_IN_SECTION = {"offload": "image.offload"}
_LEAST_CACHE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Room:
    """A device as the planner sees it; all in bytes."""

    id: str
    name: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory_bytes: int
    free_bytes: int
    evictable: Sequence[
        tuple[str, int]
    ] = ()  #: (model, bytes), in the order in which they would go


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model fits, and who has to go for it."""

    device: str
    evict: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Settings under which a model would fit."""

    settings: dict[str, str | int]  #: of models.<name>
    needs_bytes: int
    place: Place


@dataclass(frozen=True, slots=True)
class FitAnswer:
    model: str
    verdict: str  #: loaded, fits, fits_after_eviction or does_not_fit
    message: str  #: one sentence
    load_config: LoadConfig
    need: MemoryEstimate | None  #: None if there is no device of the kind it is set to
    place: Place | None
    rooms: Sequence[Room]
    suggestions: Sequence[Suggestion]

    @property
    def fits(self) -> bool:
        return self.verdict != "does_not_fit"


def fit(
    manifest: Manifest,
    wishes: Sequence[LoadConfig],
    rooms: Sequence[Room],
    need: Callable[[LoadConfig], MemoryEstimate],
    *,
    loaded: Place | None = None,
    others: Sequence[LoadConfig] = (),
) -> FitAnswer:
    """``wishes``: as it is set, one per kind of device it may go to; ``others``: kinds that it
    could be set to."""
    name, load_config = manifest.name, wishes[0] if wishes else LoadConfig("cpu")
    if loaded is not None:
        message = f"{name} is loaded on {loaded.device}."
        return FitAnswer(name, "loaded", message, load_config, need(load_config), loaded, rooms, ())
    for load_config in wishes:
        if place := _place(need(load_config).bytes, load_config.device, rooms):
            verdict = "fits_after_eviction" if place.evict else "fits"
            after = f" after {', '.join(place.evict)} made room" if place.evict else ""
            message = f"{name} fits on {place.device}{after}."
            return FitAnswer(
                name, verdict, message, load_config, need(load_config), place, rooms, ()
            )
    ways = [way for load_config in wishes for way in _ways_out(manifest, load_config, rooms, need)]
    for load_config in others:
        if place := _place(need(load_config).bytes, load_config.device, rooms):
            ways.append(
                Suggestion({"device": _setting(load_config.device)}, need(load_config).bytes, place)
            )
    if not wishes:
        message = f"This machine has no device of the kind that {name} is set to."
        return FitAnswer(name, "does_not_fit", message, load_config, None, None, rooms, ways)
    return FitAnswer(
        name,
        "does_not_fit",
        _why_not(name, wishes[0], rooms, need),
        wishes[0],
        need(wishes[0]),
        None,
        rooms,
        ways,
    )


def _why_not(
    name: str,
    load_config: LoadConfig,
    rooms: Sequence[Room],
    need: Callable[[LoadConfig], MemoryEstimate],
) -> str:
    most = max((_most(room) for room in rooms if room.kind == load_config.device), default=0)
    needed = need(load_config).bytes
    return f"{name} needs {_size(needed)}, and {_size(most)} can be had."


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _setting(kind: str) -> str:
    """The value of models.<name>.device that means this kind."""
    return "cpu" if kind == "cpu" else "cuda"


def _most(room: Room) -> int:
    """What could be free on a device at best."""
    return room.free_bytes + sum(size for _, size in room.evictable)


def _place(needed: int, kind: str, rooms: Sequence[Room]) -> Place | None:
    """On free memory if there is enough anywhere, else where the fewest have to go."""
    same = [room for room in rooms if room.kind == kind]
    free = [room for room in same if room.free_bytes >= needed]
    if free:
        return Place(min(free, key=lambda room: room.free_bytes).id)
    places = [place for room in same if (place := _after_eviction(needed, room))]
    return min(places, key=lambda place: len(place.evict), default=None)


def _after_eviction(needed: int, room: Room) -> Place | None:
    missing = needed - room.free_bytes
    gone: list[tuple[str, int]] = []
    for model, size in room.evictable:
        if sum(size for _, size in gone) >= missing:
            break
        gone.append((model, size))
    if sum(size for _, size in gone) < missing:
        return None
    for entry in list(gone):  # whoever turns out not to be needed stays
        if sum(size for _, size in gone) - entry[1] >= missing:
            gone.remove(entry)
    return Place(room.id, tuple(model for model, _ in gone))


def _ways_out(
    manifest: Manifest,
    load_config: LoadConfig,
    rooms: Sequence[Room],
    need: Callable[[LoadConfig], MemoryEstimate],
) -> Iterator[Suggestion]:
    """Each setting by itself, the mildest value that is enough; else all that help, together."""
    if manifest.kind not in ("text", "image") or load_config.fake_bytes is not None:
        return
    found = False
    for steps in _steps(manifest, load_config):
        for settings in steps:
            changed = replace(load_config, **settings)  # type: ignore[arg-type]
            if place := _place(need(changed).bytes, load_config.device, rooms):
                found = True
                yield Suggestion(settings, need(changed).bytes, place)
                break
    if not found:
        together = {
            k: v for steps in _steps(manifest, load_config) if steps for k, v in steps[-1].items()
        }
        changed = replace(load_config, **together)  # type: ignore[arg-type]
        if together and (place := _place(need(changed).bytes, load_config.device, rooms)):
            yield Suggestion(together, need(changed).bytes, place)


def _steps(manifest: Manifest, load_config: LoadConfig) -> list[list[dict[str, str | int]]]:
    """For each setting its values below the present one, the mildest first."""
    if manifest.kind == "image":
        return _image_steps(load_config)
    steps: list[list[dict[str, str | int]]] = []
    halved = estimate(manifest, replace(load_config, dtype="bfloat16"))
    if (load_config.dtype or manifest.dtype) == "float32" and halved.total < estimate(
        manifest, load_config
    ).total:
        steps.append([{"dtype": "bfloat16"}])
    context = load_config.max_context or manifest.max_context or 0
    steps.append([{"max_context": size} for size in _CONTEXTS if size < context])
    cache = _cache(manifest, load_config)
    halves = [cache >> shift for shift in range(1, 8) if cache >> shift >= _LEAST_CACHE]
    steps.append([{"kv_cache_bytes": size} for size in halves])
    rows = load_config.max_batch or TEXT_ROWS
    steps.append([{"max_batch": size} for size in _ROWS if size < rows])
    return [values for values in steps if values]


def _image_steps(load_config: LoadConfig) -> list[list[dict[str, str | int]]]:
    """Those of image models; on a CPU there is nothing to offload from."""
    steps: list[list[dict[str, str | int]]] = []
    if load_config.device != "cpu":
        steps.append(
            [{"offload": mode} for mode in OFFLOADS[OFFLOADS.index(load_config.offload) + 1 :]]
        )
    elif load_config.dtype in (None, "float32"):
        steps.append([{"dtype": "bfloat16"}])
    images = load_config.max_batch or IMAGE_BATCH
    steps.append([{"max_batch": count} for count in _ROWS if count < images])
    return [values for values in steps if values]


def _cache(manifest: Manifest, load_config: LoadConfig) -> int:
    """The attention cache as it is estimated; 0 where a token's part is not known."""
    return (
        estimate(manifest, load_config).cache if cache_bytes_per_token(manifest, load_config) else 0
    )


def fit_info(answer: FitAnswer) -> dict[str, Any]:
    """The answer as JSON: of the route, and in the details of MODEL_DOES_NOT_FIT."""
    need, load_config = answer.need, answer.load_config
    return {
        "model_id": answer.model,
        "fits": answer.fits,
        "verdict": answer.verdict,
        "message": answer.message,
        "needs": need and _needs(need),
        "device": answer.place.device if answer.place else None,
        "evict": list(answer.place.evict) if answer.place else [],
        "load_seconds": need.load_seconds if need else None,
        "settings": {
            "device": _setting(load_config.device),
            "dtype": load_config.dtype,
            "max_context": load_config.max_context,
            "kv_cache_bytes": load_config.kv_cache_bytes,
            "max_batch": load_config.max_batch,
            "offload": load_config.offload,
        },
        "devices": [
            {
                "id": room.id,
                "name": room.name,
                "kind": room.kind,
                "memory_bytes": room.memory_bytes,
                "free_bytes": max(0, room.free_bytes),
                "missing_bytes": max(0, need.bytes - room.free_bytes) if need else None,
            }
            for room in answer.rooms
        ],
        "ways_out": [_way(answer.model, out) for out in answer.suggestions],
    }


def _needs(need: MemoryEstimate) -> dict[str, Any]:
    return {
        "total_bytes": need.bytes,
        "weights_bytes": need.footprint.weights,
        "cache_bytes": need.footprint.cache,
        "activation_bytes": need.footprint.activations,
        "overhead_bytes": need.footprint.overhead,
        "source": "measured" if need.measured else "estimated",
    }


def _way(model: str, out: Suggestion) -> dict[str, Any]:
    """A setting and its value; lists of both where only several together help."""
    names = [f"models.{model}.{_IN_SECTION.get(name, name)}" for name in out.settings]
    values = list(out.settings.values())
    return {
        "setting": names[0] if len(names) == 1 else names,
        "value": values[0] if len(values) == 1 else values,
        "needs_bytes": out.needs_bytes,
        "device": out.place.device,
        "evict": list(out.place.evict),
    }
