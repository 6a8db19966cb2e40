"""Fit: where a model fits, after which evictions; suggestions hold; the planner agrees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.scheduling.placement.dry_run import Placement, Snapshot
from bitinglip.scheduling.placement.estimate import (
    Footprint,
    LoadConfig,
    bytes_by_dtype,
    bytes_by_quantization,
    cache_grant,
    estimate,
    own_dtype,
)
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.fit import FitAnswer, fit, fit_info
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Reservation
from bitinglip.scheduling.placement.planner import Demand, Load, plan
from model_store.manifest import Manifest
from workers.devices import Device
from workers.devices.device import Elsewhere

GB = 1_000_000_000
NOW = 1000.0
RULES = EvictionRules(min_residency=20, residency_factor=4, patience=5)
LLAMA = Manifest(
    name="llama",
    kind="text",
    engine="text",
    max_context=131_072,
    dtype="float32",
    weight_bytes=32 * GB,
    vocab_size=128_000,
    kv_bytes_per_token=131_072,
    source="test",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def need(load_config: LoadConfig) -> MemoryEstimate:
    footprint = estimate(LLAMA, load_config)
    return MemoryEstimate(footprint.total, None, False, footprint)


def held(model: str, size: int, device: str = "0", **facts: Any) -> Reservation:
    """Return a model that was loaded long ago and has been idle since, unless a test says
    otherwise."""
    usual = {"state": "ready", "loaded_at": 0.0, "used_at": 0.0, "load_seconds": 2.0}
    return Reservation(f"{model}/0", model, {device: size}, **{**usual, **facts})


@dataclass
class Card:
    """Simulates a device with so much free beside its idle models, in GB."""

    free: int
    models: Sequence[tuple[str, int]]
    name: str

    @property
    def capacity(self) -> DeviceCapacity:
        whole = self.free + sum(size for _, size in self.models)
        return DeviceCapacity(self.name, "cuda", whole * GB, name="card")

    @property
    def reservations(self) -> list[Reservation]:
        return [held(f"{model}{self.name}", size * GB, self.name) for model, size in self.models]


def card(free: int, *models: tuple[str, int], name: str = "0") -> Card:
    return Card(free, models, name)


def snapshot(*cards: Card) -> Snapshot:
    reservations = [each for card in cards for each in card.reservations]
    return Snapshot([card.capacity for card in cards], reservations, NOW, RULES)


def verdict(size: int, facts: Snapshot, **options: Any) -> FitAnswer:
    """Ask for a model of so many bytes on cards."""
    footprint = Footprint(size, 0, 0, 0)
    return fit(
        LLAMA, [CUDA], facts, lambda _: MemoryEstimate(size, None, False, footprint), **options
    )


CUDA = LoadConfig("cuda", dtype="float32")


def test_fit_takes_free_memory_where_it_is_tightest() -> None:
    answer = fit(LLAMA, [CUDA], snapshot(card(80), card(40, name="1"), card(9, name="2")), need)
    assert (answer.verdict, answer.placement) == ("fits", Placement(("1",)))


def test_fit_evicts_only_as_many_as_it_must() -> None:
    facts = snapshot(card(10, ("small", 2), ("large", 30), ("other", 30)))
    answer = fit(LLAMA, [CUDA], facts, need)
    assert (answer.verdict, answer.placement) == (
        "fits_after_eviction",
        Placement(("0",), ("large0",)),
    )
    assert answer.message == "llama fits on 0 after unloading large0."
    assert fit_info(answer)["evict"] == ["large0"]


def test_fit_names_only_models_that_a_key_may_see() -> None:
    facts = snapshot(card(10, ("small", 2), ("large", 30), ("other", 30)))
    info = fit_info(fit(LLAMA, [CUDA], facts, need), "small0".__eq__)
    assert (info["verdict"], info["evict"]) == ("fits_after_eviction", [])
    assert info["message"] == "llama fits on 0 after unloading others."
    tight = snapshot(card(10, ("large", 15)))
    ways = fit_info(fit(LLAMA, [CUDA], tight, need), "llama".__eq__)["ways_out"]
    assert [way["evict"] for way in ways] == [[] for _ in ways] != []


def test_fit_counts_unused_models_of_other_gateways_as_ones_that_make_room() -> None:
    def facts(mine: int, idle: int) -> Snapshot:
        found = snapshot(card(40, ("mine", mine)))
        theirs = Elsewhere(reserved=30 * GB, idle=idle * GB)
        return replace(found, devices=[replace(found.devices[0], elsewhere=theirs)])

    beside = verdict(10 * GB, facts(5, 30))
    assert (beside.verdict, beside.placement) == ("fits", Placement(("0",)))
    own = verdict(15 * GB, facts(5, 30))
    assert own.placement == Placement(("0",), ("mine0",)), "one's own first"
    both = verdict(32 * GB, facts(5, 30))
    assert both.verdict == "fits_after_eviction"
    assert both.placement == Placement(("0",), ("mine0",), 17 * GB)
    assert both.message.endswith("unloading mine0, 17.0 GB of other gateways' unused models.")
    info = fit_info(both)
    assert info["evict_elsewhere_bytes"] == 17 * GB
    (device,) = info["devices"]
    assert (device["free_bytes"], device["idle_bytes"]) == (10 * GB, 5 * GB)
    assert device["idle_elsewhere_bytes"] == 30 * GB
    busy = verdict(32 * GB, facts(5, 10))
    assert busy.verdict == "does_not_fit"
    assert "Other gateways have 30.0 GB of 0." in busy.message
    assert verdict(32 * GB, facts(5, 30).alone()).verdict == "does_not_fit"


def test_fit_says_that_a_model_is_loaded() -> None:
    answer = fit(LLAMA, [CUDA], snapshot(card(0)), need, loaded=Placement(("0",)))
    assert (answer.verdict, answer.message) == ("loaded", "llama is loaded on 0.")


def test_fit_gives_the_numbers_and_suggestions_where_a_model_does_not_fit() -> None:
    answer = fit(LLAMA, [CUDA], snapshot(card(24)), need)
    assert not answer.fits
    assert answer.message == "llama needs 37.0 GB, and 24.0 GB can be had."
    info = fit_info(answer)
    assert info["devices"][0]["missing_bytes"] == info["needs"]["total_bytes"] - 24 * GB
    assert {"setting": "models.llama.dtype", "value": "bfloat16"}.items() <= (
        info["ways_out"][0].items()
    )


def test_fit_suggests_settings_together_that_help_only_together() -> None:
    (way,) = fit_info(fit(LLAMA, [CUDA], snapshot(card(17)), need))["ways_out"]
    assert way["setting"][0] == "models.llama.dtype"
    assert len(way["setting"]) == len(way["value"]) > 1


def test_fit_does_not_suggest_half_precision_where_it_is_the_default() -> None:
    (way,) = fit_info(fit(LLAMA, [LoadConfig("cuda")], snapshot(card(17)), need))["ways_out"]
    assert "models.llama.dtype" not in way["setting"]


def test_fit_suggests_nothing_that_would_not_fit() -> None:
    assert fit(LLAMA, [CUDA], snapshot(card(8)), need).suggestions == []


def test_fit_suggests_another_kind_of_device() -> None:
    devices = [card(8).capacity, DeviceCapacity("cpu", "cpu", 200 * GB)]
    answer = fit(LLAMA, [CUDA], Snapshot(devices), need, others=[LoadConfig("cpu")])
    assert [way.settings for way in answer.suggestions] == [{"device": "cpu"}]


def test_fit_of_a_kind_that_the_machine_lacks() -> None:
    answer = fit(LLAMA, [], Snapshot([DeviceCapacity("cpu", "cpu", GB)]), need)
    assert (answer.fits, fit_info(answer)["needs"]) == (False, None)


cards = st.lists(
    st.builds(
        card,
        st.integers(0, 60),
        st.tuples(st.sampled_from("abc"), st.integers(1, 30)),
        st.tuples(st.sampled_from("def"), st.integers(1, 30)),
        name=st.sampled_from("01"),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda card: card.name,
)


@given(cards, st.sampled_from([None, 8192, 65_536]), st.sampled_from([None, 1, 8]))
def test_fit_answers_and_suggestions_hold(
    found: list[Card], context: int | None, batch: int | None
) -> None:
    load_config = replace(CUDA, max_context=context, max_batch=batch)
    answer = fit(LLAMA, [load_config], snapshot(*found), need)
    if answer.placement is not None:
        _check(answer.placement, need(load_config).bytes, found)
    else:
        assert all(each.capacity.memory < need(load_config).bytes for each in found)
    for way in answer.suggestions:
        changed = replace(load_config, **way.settings)  # type: ignore[arg-type]
        assert need(changed).bytes == way.needs_bytes < need(load_config).bytes
        _check(way.placement, way.needs_bytes, found)


def _check(placement: Placement, needed: int, found: list[Card]) -> None:
    """Check that the memory is enough, and no model is evicted needlessly."""
    (device,) = placement.devices
    card = next(each for each in found if each.name == device)
    evicted = [h.devices[device] for h in card.reservations if h.model in placement.evict]
    free = card.free * GB
    assert free + sum(evicted) >= needed
    assert all(free + sum(evicted) - size < needed for size in evicted)


# ---- fit and the planner give one answer --------------------------------------------------------


def test_fit_splits_a_model_as_the_planner_does() -> None:
    facts = Snapshot([DeviceCapacity("0", "cuda", 24), DeviceCapacity("1", "cuda", 24)], now=NOW)
    demand = Demand("llama", 0, {"cuda": 40}, NOW, spread=2)
    assert plan(facts.ledger(), [demand], NOW, RULES).loads == [
        Load("llama", 0, {"0": 20, "1": 20})
    ]
    answer = verdict(40, facts, spread=2)
    assert (answer.verdict, answer.placement) == ("fits", Placement(("0", "1")))
    assert answer.message == "llama fits on 0, 1."
    assert verdict(40, facts).verdict == "does_not_fit"


def test_fit_of_a_split_model_counts_all_its_devices() -> None:
    facts = Snapshot([DeviceCapacity(name, "cuda", 24 * GB) for name in "01"], now=NOW)
    message = "llama needs {:.1f} GB, and {:.1f} GB can be had."
    assert verdict(50 * GB, facts, spread=2).message == message.format(50, 48)
    assert verdict(50 * GB, facts).message == message.format(50, 24)
    pinned = [held("p", 20 * GB, pinned=True), held("q", 20 * GB, "1", pinned=True)]
    facts = replace(facts, reservations=pinned)
    assert verdict(6 * GB, facts, spread=2).message == message.format(6, 4)


def test_fit_splits_a_model_after_evictions() -> None:
    devices = [DeviceCapacity("0", "cuda", 24), DeviceCapacity("1", "cuda", 24)]
    facts = Snapshot(devices, [held("a", 10), held("b", 2, "1")], NOW, RULES)
    answer = verdict(40, facts, spread=2)
    assert answer.placement == Placement(("1", "0"), ("a",))


def test_fit_evicts_the_idle_model_that_the_planner_evicts() -> None:
    """It counts cost per byte: 1 for 4 bytes is dearer than 2 for 20."""
    idle = [held("a", 4, used_at=NOW - 1), held("b", 20, used_at=NOW)]
    facts = Snapshot([DeviceCapacity("0", "cuda", 24)], idle, NOW, RULES)
    evictions = plan(facts.ledger(), [Demand("llama", 0, {"cuda": 4}, NOW)], NOW, RULES).evictions
    assert [each.id for each in evictions] == ["b/0"]
    assert verdict(4, facts).placement == Placement(("0",), ("b",))


@pytest.mark.parametrize(
    ("load_config", "weights", "cache"),
    [
        (CUDA, 32 * GB, 4096 << 20),
        (LoadConfig("cuda"), 16 * GB, 4096 << 20),
        (LoadConfig("cuda", dtype="bfloat16"), 16 * GB, 4096 << 20),
        (replace(CUDA, kv_cache_bytes=GB), 32 * GB, GB),
        (replace(CUDA, max_batch=1, max_context=2048), 32 * GB, 2048 * 131_072 * 2),
        (LoadConfig("cuda", max_batch=1, max_context=2048), 16 * GB, 2048 * 131_072),
        (LoadConfig("cpu"), 72 * GB, 512 << 20),
        (LoadConfig("fake", claimed_bytes=5), 5, 0),
    ],
)
def test_estimate_follows_the_load_config(
    load_config: LoadConfig, weights: int, cache: int
) -> None:
    footprint = estimate(LLAMA, load_config)
    assert (footprint.weights, footprint.cache) == (weights, cache)
    if load_config.claimed_bytes is not None:
        assert footprint.total == 5


@pytest.mark.parametrize(
    ("named", "weights"), [(None, 72 * GB), ("float32", 72 * GB), ("bfloat16", 52 * GB)]
)
def test_estimates_follow_the_format_that_a_config_names(named: str | None, weights: int) -> None:
    manifest = msgspec.structs.replace(LLAMA, config_dtype=named)
    assert estimate(manifest, LoadConfig("cpu")).weights == weights
    assert own_dtype(manifest) == (named or "float32")
    assert own_dtype(msgspec.structs.replace(manifest, kind="image")) == "float32"


def test_estimate_counts_graphs_on_a_card() -> None:
    graphs = replace(CUDA, graphs=True)
    assert estimate(LLAMA, graphs).total - estimate(LLAMA, CUDA).total == 300_000_000
    # Llama-3.1's of 8B and 70B: 32 layers and 80 of them
    for parameters, rows, layers in ((6.98e9, 1_376_256, 32), (68.5e9, 6_717_440, 80)):
        shaped = msgspec.structs.replace(LLAMA, linear_parameters=int(parameters), linear_rows=rows)
        added = estimate(shaped, graphs).total - estimate(shaped, CUDA).total
        assert added == pytest.approx(64 * layers * 200_000, rel=0.1)
    assert estimate(LLAMA, LoadConfig("cpu", graphs=True)) == estimate(LLAMA, LoadConfig("cpu"))


def test_estimate_grants_the_cache_a_part_of_large_cards() -> None:
    """A cache of 4 GiB holds few long conversations on a card of 141 GB."""
    card = Device("0", "card", "cuda", 141 * GB, 141 * GB)
    small = replace(card, id="1", memory_bytes=24 * GB)
    assert cache_grant(None, LLAMA, "cuda", [card]) == 141 * GB // 8
    assert cache_grant(None, LLAMA, "cuda", [card, small]) is None, "it may go to the small one"
    assert cache_grant(None, LLAMA, "cuda", []) is None
    assert cache_grant(None, LLAMA, "cpu", [card]) is None
    assert cache_grant(None, msgspec.structs.replace(LLAMA, kind="speech"), "cuda", [card]) is None
    assert [cache_grant(each, LLAMA, "cuda", [card]) for each in (0, GB)] == [0, GB]


def test_estimate_counts_the_largest_step_of_prompts() -> None:
    shaped = msgspec.structs.replace(LLAMA, linear_parameters=int(6.98e9), linear_rows=1_376_256)
    for config, tokens in ((CUDA, 2048), (LoadConfig("cpu"), 256)):
        added = estimate(shaped, config).activations - estimate(LLAMA, config).activations
        # a layer's 43,008 outputs, and three residuals of 4,096
        assert added == pytest.approx(tokens * (43_008 + 3 * 4096) * 4, rel=0.2)


def test_estimates_by_number_format_are_those_of_the_settings() -> None:
    found = bytes_by_dtype(LLAMA, LoadConfig("cuda"))
    expected = {name: estimate(LLAMA, replace(CUDA, dtype=name)).total for name in found}
    assert found == expected
    assert found["float32"] > found["bfloat16"] == found["float16"]
    assert bytes_by_dtype(LLAMA, LoadConfig("fake", claimed_bytes=5)) == {}


QUANTIZABLE = msgspec.structs.replace(
    LLAMA, dtype="bfloat16", weight_bytes=16 * GB, linear_parameters=7 * GB, linear_rows=1_400_000
)


def fit_quantized(free: int, lacks: dict[str, str | None], **settings: Any) -> FitAnswer:
    config = LoadConfig("cuda", max_context=4096, max_batch=4, **settings)
    devices = [DeviceCapacity("0", "cuda", free * GB, name="card")]

    def sized(each: LoadConfig) -> MemoryEstimate:
        footprint = estimate(QUANTIZABLE, each)
        return MemoryEstimate(footprint.total, None, False, footprint)

    snapshot = Snapshot(devices, [], NOW, RULES)
    return fit(QUANTIZABLE, [config], snapshot, sized, quantizations=lacks)


def test_fit_offers_the_mildest_quantization_that_fits() -> None:
    everything: dict[str, str | None] = {"int8": None, "nf4": "bitsandbytes is not installed"}
    assert fit_quantized(24, everything).fits
    answer = fit_quantized(14, everything)
    offered = [each for each in answer.suggestions if "quantization" in each.settings]
    assert [each.settings for each in offered] == [{"quantization": "int8"}]
    assert offered[0].needs_bytes == answer.by_quantization["int8"] < 14 * GB
    info = fit_info(answer)
    assert info["ways_out"][0]["setting"] == "models.llama.quantization"
    assert info["ways_out"][0]["value"] == "int8"
    assert fit_quantized(14, everything, quantization="int8").fits


def test_fit_says_what_a_quantization_lacks() -> None:
    answer = fit_quantized(9, {"int8": None, "nf4": "bitsandbytes is not installed"})
    ways = [way for way in fit_info(answer)["ways_out"] if way["value"] == "nf4"]
    assert [way["lacks"] for way in ways] == ["bitsandbytes is not installed"]


def test_fit_offers_no_quantization_to_what_is_quantised() -> None:
    quantised = msgspec.structs.replace(QUANTIZABLE, quantization="gptq", linear_parameters=0)
    assert bytes_by_quantization(quantised, LoadConfig("cuda")) == {}
    needed = estimate(quantised, LoadConfig("cuda", dtype="float32"))
    assert needed.weights == quantised.weight_bytes
