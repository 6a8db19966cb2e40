"""A fit says where a model fits, after which evictions, or else with which settings. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from bitinglip.scheduling.placement import dry_run
from bitinglip.scheduling.placement.dry_run import Placement, Snapshot
from bitinglip.scheduling.placement.estimate import (
    OFFLOADS,
    LoadConfig,
    bytes_by_dtype,
    bytes_by_quantization,
    cache_bytes_per_token,
    estimate,
    own_dtype,
)
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from bitinglip.scheduling.placement.ram import ram_need
from model_store.manifest import Manifest
from model_store.sizes import size_text
from workers.engines.defaults import IMAGE_BATCH, TEXT_ROWS

_CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048)
_ROWS = (32, 16, 8, 4, 2, 1)
_IN_SECTION = {"offload": "image.offload", "kv_cache_dtype": "text.kv_cache_dtype"}
NO_QUANTIZATIONS: Mapping[str, str | None] = MappingProxyType({})
_LEAST_CACHE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Describes a device of the answer, in bytes."""

    id: str
    name: str
    kind: str  #: "cuda", "cpu" or "fake"
    memory_bytes: int
    free_bytes: int
    idle_bytes: int = 0  #: of models here that may be evicted now
    idle_elsewhere_bytes: int = 0  #: of other gateways' models, alike


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A model would fit under these settings."""

    settings: dict[str, str | int]  #: of models.<name>
    needs_bytes: int
    placement: Placement
    lacks: str | None = None  #: what is to be installed first


@dataclass(frozen=True, slots=True)
class FitAnswer:
    """Answers for one model, with the numbers behind it."""

    model: str
    verdict: str  #: loaded, fits, fits_after_eviction or does_not_fit
    message: str  #: one sentence
    load_config: LoadConfig
    need: MemoryEstimate | None  #: None if there is no device of the kind it is set to
    placement: Placement | None
    devices: Sequence[DeviceState]
    suggestions: Sequence[Suggestion] = ()
    by_dtype: Mapping[str, int] = field(default_factory=dict)  #: bytes in each number format
    by_quantization: Mapping[str, int] = field(default_factory=dict)  #: bytes quantised to each

    @property
    def fits(self) -> bool:
        return self.verdict != "does_not_fit"


def fit(
    manifest: Manifest,
    load_configs: Sequence[LoadConfig],
    snapshot: Snapshot,
    need: Callable[[LoadConfig], MemoryEstimate],
    *,
    spread: int = 1,
    loaded: Placement | None = None,
    others: Sequence[LoadConfig] = (),
    quantizations: Mapping[str, str | None] = NO_QUANTIZATIONS,
) -> FitAnswer:
    """Ask the planner whether a model fits, and look for settings if it does not.

    ``load_configs``: as the model is set, one per kind of device that it may go to; ``others``:
    the kinds that it could be set to; ``spread``: over how many devices it may be split;
    ``quantizations``: the formats that its devices can run it in, each with the package that is not
    installed yet.
    """
    found = _Fit(manifest, snapshot, need, spread, quantizations)
    return found.answer(load_configs, loaded, others)


class _Fit:
    def __init__(
        self,
        manifest: Manifest,
        snapshot: Snapshot,
        need: Callable[[LoadConfig], MemoryEstimate],
        spread: int,
        quantizations: Mapping[str, str | None],
    ) -> None:
        self._manifest = manifest
        self._snapshot = snapshot
        self._need = need
        self._spread = spread
        self._quantizations = quantizations

    def answer(
        self,
        load_configs: Sequence[LoadConfig],
        loaded: Placement | None,
        others: Sequence[LoadConfig],
    ) -> FitAnswer:
        name, first = self._manifest.name, load_configs[0] if load_configs else LoadConfig("cpu")
        if loaded is not None:
            return self._answer("loaded", f"{name} is loaded on {loaded.device}.", first, loaded)
        if placement := self._place(*load_configs):
            verdict = "fits" if placement.is_free else "fits_after_eviction"
            after = _after(placement)
            kind = self._kind_of(placement)
            return self._answer(
                verdict,
                f"{name} fits on {placement.device}{after}.",
                next(each for each in load_configs if each.device == kind),
                placement,
            )
        suggestions = [found for each in load_configs for found in self._suggestions(each)]
        for each in others:
            if placement := self._place(each):
                settings: dict[str, str | int] = {"device": _setting(each.device)}
                suggestions.append(Suggestion(settings, self._need(each).bytes, placement))
        message = f"This machine has no device of the kind that {name} is set to."
        if load_configs:
            message = self._shortfall(first)
        answer = self._answer("does_not_fit", message, first, None)
        need = answer.need if load_configs else None
        return replace(answer, need=need, suggestions=suggestions)

    def _shortfall(self, load_config: LoadConfig) -> str:
        needed = self._need(load_config).bytes
        most = dry_run.obtainable(load_config.device, needed, self._snapshot, spread=self._spread)
        text = f"{self._manifest.name} needs {size_text(needed)}, and {size_text(most)} can be had."
        ram = ram_need(self._manifest, load_config).loading
        ledger = self._snapshot.ledger()
        nodes = {each.node for each in self._snapshot.devices if each.kind == load_config.device}
        found = (ledger.ram_obtainable(node) for node in nodes)
        most_ram = max((each for each in found if each is not None), default=None)
        if needed <= most and most_ram is not None and ram > most_ram:
            text = (
                f"{self._manifest.name} needs {size_text(ram)} of RAM to load, beside "
                f"{size_text(needed)} of its device, and {size_text(max(0, most_ram))} of RAM can "
                "be had."
            )
        for each in self._snapshot.devices:
            if each.kind == load_config.device and (theirs := each.elsewhere.reserved):
                text += f" Other gateways have {size_text(theirs)} of {each.id}."
            if each.kind == load_config.device and each.reason:
                text += f" {each.id} ({each.name}) takes no load: {each.reason}"
        return text

    def _answer(
        self, verdict: str, message: str, load_config: LoadConfig, placement: Placement | None
    ) -> FitAnswer:
        ledger = self._snapshot.ledger()
        return FitAnswer(
            self._manifest.name,
            verdict,
            message,
            load_config,
            self._need(load_config),
            placement,
            [
                DeviceState(
                    each.id,
                    each.name,
                    each.kind,
                    each.memory,
                    ledger.free(each.id),
                    sum(idle.devices[each.id] for idle in self._snapshot.idle_on(each.id)),
                    each.elsewhere.idle,
                )
                for each in self._snapshot.devices
            ],
            by_dtype=bytes_by_dtype(self._manifest, load_config),
            by_quantization=bytes_by_quantization(self._manifest, load_config),
        )

    def _place(self, *load_configs: LoadConfig) -> Placement | None:
        needs = {each.device: self._need(each) for each in load_configs}
        ram = max((ram_need(self._manifest, each).loading for each in load_configs), default=0)
        return dry_run.place(
            self._manifest.name,
            {kind: need.bytes for kind, need in needs.items()},
            self._snapshot,
            spread=self._spread,
            each_device=max((need.footprint.overhead for need in needs.values()), default=0),
            ram=ram,
            file_bytes=self._manifest.file_bytes,
            weights_of=self._manifest.adapter_of or "",
        )

    def _kind_of(self, placement: Placement) -> str:
        return next(each.kind for each in self._snapshot.devices if each.id == placement.devices[0])

    def _suggestions(self, load_config: LoadConfig) -> Iterator[Suggestion]:
        """Yield the mildest value of each setting that is enough alone; else all together."""
        if self._manifest.kind not in ("text", "image") or load_config.claimed_bytes is not None:
            return
        found = False
        all_steps = _steps(self._manifest, load_config, self._quantizations)
        for steps in all_steps:
            for settings in steps:
                if suggestion := self._suggestion(load_config, settings):
                    found = True
                    yield suggestion
                    break
        together = {name: value for steps in all_steps for name, value in steps[-1].items()}
        if not found and together and (suggestion := self._suggestion(load_config, together)):
            yield suggestion

    def _suggestion(
        self, load_config: LoadConfig, settings: dict[str, str | int]
    ) -> Suggestion | None:
        changed = replace(load_config, **settings)  # type: ignore[arg-type]  # named as its fields
        if placement := self._place(changed):
            lacks = self._quantizations.get(changed.quantization or "")
            return Suggestion(settings, self._need(changed).bytes, placement, lacks)
        return None


def _after(placement: Placement) -> str:
    """Say what is unloaded before a placement; nothing where it is free."""
    gone = list(placement.evict)
    if placement.evict_elsewhere:
        gone.append(f"{size_text(placement.evict_elsewhere)} of other gateways' unused models")
    return f" after unloading {', '.join(gone)}" if gone else ""


def _setting(kind: str) -> str:
    """Return the value of models.<name>.device that means this kind."""
    return "cpu" if kind == "cpu" else "cuda"


def _steps(
    manifest: Manifest, load_config: LoadConfig, quantizations: Mapping[str, str | None]
) -> list[list[dict[str, str | int]]]:
    """List for each setting the values below the present one, the mildest first."""
    if manifest.kind == "image":
        return _image_steps(load_config)
    steps: list[list[dict[str, str | int]]] = []
    halved = estimate(manifest, replace(load_config, dtype="bfloat16"))
    if (load_config.dtype or own_dtype(manifest)) == "float32" and halved.total < estimate(
        manifest, load_config
    ).total:
        steps.append([{"dtype": "bfloat16"}])
    smaller = bytes_by_quantization(manifest, load_config)
    if load_config.quantization is None:
        steps.append([{"quantization": each} for each in quantizations if each in smaller])
    if load_config.kv_cache_dtype == "auto" and manifest.kind == "text":
        steps.append([{"kv_cache_dtype": "fp8"}])
    context = load_config.max_context or manifest.max_context or 0
    steps.append([{"max_context": size} for size in _CONTEXTS if size < context])
    cache = _cache(manifest, load_config)
    halves = [cache >> shift for shift in range(1, 8) if cache >> shift >= _LEAST_CACHE]
    steps.append([{"kv_cache_bytes": size} for size in halves])
    rows = load_config.max_batch or TEXT_ROWS
    steps.append([{"max_batch": size} for size in _ROWS if size < rows])
    return [values for values in steps if values]


def _image_steps(load_config: LoadConfig) -> list[list[dict[str, str | int]]]:
    """List the steps of image models; on a CPU there is nothing to offload from."""
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
    """Estimate the attention cache; 0 where the bytes of a token are not known."""
    return (
        estimate(manifest, load_config).cache if cache_bytes_per_token(manifest, load_config) else 0
    )


def fit_info(
    answer: FitAnswer, may_see: Callable[[str], bool] = lambda _model: True
) -> dict[str, Any]:
    """Return the answer as JSON, for the route and for the details of MODEL_DOES_NOT_FIT.

    Other models are named only if ``may_see`` allows it.
    """
    need, load_config = answer.need, answer.load_config
    evict = answer.placement.evict if answer.placement else ()
    message = answer.message
    if answer.placement and not all(map(may_see, evict)):
        message = f"{answer.model} fits on {answer.placement.device} after unloading others."
    return {
        "model_id": answer.model,
        "fits": answer.fits,
        "verdict": answer.verdict,
        "message": message,
        "needs": need and _needs(need),
        "needs_by_dtype": dict(answer.by_dtype),
        "needs_by_quantization": dict(answer.by_quantization),
        "device": answer.placement.device if answer.placement else None,
        "evict": list(filter(may_see, evict)),
        "evict_elsewhere_bytes": answer.placement.evict_elsewhere if answer.placement else 0,
        "load_seconds": need.load_seconds if need else None,
        "settings": {
            "device": _setting(load_config.device),
            "dtype": load_config.dtype,
            "quantization": load_config.quantization,
            "max_context": load_config.max_context,
            "kv_cache_bytes": load_config.kv_cache_bytes,
            "kv_cache_dtype": load_config.kv_cache_dtype,
            "max_batch": load_config.max_batch,
            "offload": load_config.offload,
        },
        "devices": [
            {
                "id": each.id,
                "name": each.name,
                "kind": each.kind,
                "memory_bytes": each.memory_bytes,
                "free_bytes": max(0, each.free_bytes),
                "idle_bytes": each.idle_bytes,
                "idle_elsewhere_bytes": each.idle_elsewhere_bytes,
                "missing_bytes": max(0, need.bytes - each.free_bytes) if need else None,
            }
            for each in answer.devices
        ],
        "ways_out": [_suggestion_info(answer.model, each, may_see) for each in answer.suggestions],
    }


def needs_info(
    manifest: Manifest, load_config: LoadConfig, quantizations: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return as JSON the bytes that a model would take in each number format, and quantised to each
    format that its device can run, with the package that is not installed for it."""
    sizes = bytes_by_quantization(manifest, load_config)
    return {
        "needs_by_dtype": bytes_by_dtype(manifest, load_config),
        "quantizations": [
            {"format": name, "needs_bytes": sizes[name], "lacks": lacks}
            for name, lacks in quantizations.items()
        ],
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


def _suggestion_info(
    model: str, found: Suggestion, may_see: Callable[[str], bool]
) -> dict[str, Any]:
    """Give a setting and its value; lists of both where only several together help."""
    names = [f"models.{model}.{_IN_SECTION.get(name, name)}" for name in found.settings]
    values = list(found.settings.values())
    return {
        "setting": names[0] if len(names) == 1 else names,
        "value": values[0] if len(values) == 1 else values,
        "needs_bytes": found.needs_bytes,
        "lacks": found.lacks,
        "device": found.placement.device,
        "evict": list(filter(may_see, found.placement.evict)),
        "evict_elsewhere_bytes": found.placement.evict_elsewhere,
    }
