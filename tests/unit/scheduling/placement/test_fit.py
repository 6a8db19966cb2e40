"""Whether a model fits, after whom, and that what is offered as a way out really is one."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from bitinglip.scheduling.placement.fit import Place, Room, fit, fit_info
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from model_store.manifest import Manifest

GB = 1_000_000_000
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


def card(free: int, *evictable: tuple[str, int], name: str = "0") -> Room:
    return Room(name, "card", "cuda", 80 * GB, free * GB, tuple((m, n * GB) for m, n in evictable))


CUDA = LoadConfig("cuda", dtype="float32")


def test_free_memory_is_taken_where_it_is_tightest() -> None:
    answer = fit(LLAMA, [CUDA], [card(80, name="0"), card(40, name="1"), card(9, name="2")], need)
    assert (answer.verdict, answer.place) == ("fits", Place("1"))


def test_only_those_go_that_have_to() -> None:
    rooms = [card(10, ("small", 2), ("large", 30), ("other", 30))]
    answer = fit(LLAMA, [CUDA], rooms, need)
    assert (answer.verdict, answer.place) == ("fits_after_eviction", Place("0", ("large",)))
    assert answer.message == "llama fits on 0 after large made room."


def test_what_is_loaded_is_said_to_be() -> None:
    assert fit(LLAMA, [CUDA], [card(0)], need, loaded=Place("0")).verdict == "loaded"


def test_a_model_that_does_not_fit_is_told_the_numbers_and_the_ways_out() -> None:
    answer = fit(LLAMA, [CUDA], [card(24)], need)
    assert not answer.fits
    assert answer.message == "llama needs 37.0 GB, and 24.0 GB can be had."
    info = fit_info(answer)
    assert info["devices"][0]["missing_bytes"] == info["needs"]["total_bytes"] - 24 * GB
    assert {"setting": "models.llama.dtype", "value": "bfloat16"}.items() <= (
        info["ways_out"][0].items()
    )


def test_settings_that_help_only_together_are_offered_together() -> None:
    (way,) = fit_info(fit(LLAMA, [CUDA], [card(17)], need))["ways_out"]
    assert way["setting"][0] == "models.llama.dtype"
    assert len(way["setting"]) == len(way["value"]) > 1


def test_half_precision_is_not_offered_where_it_is_the_default() -> None:
    (way,) = fit_info(fit(LLAMA, [LoadConfig("cuda")], [card(17)], need))["ways_out"]
    assert "models.llama.dtype" not in way["setting"]


def test_nothing_is_offered_that_would_not_fit() -> None:
    assert fit(LLAMA, [CUDA], [card(8)], need).suggestions == []


def test_another_kind_of_device_is_a_way_out() -> None:
    processor = Room("cpu", "CPU", "cpu", 200 * GB, 200 * GB)
    answer = fit(LLAMA, [CUDA], [card(8), processor], need, others=[LoadConfig("cpu")])
    assert [way.settings for way in answer.suggestions] == [{"device": "cpu"}]


def test_a_kind_that_the_machine_lacks() -> None:
    answer = fit(LLAMA, [], [Room("cpu", "CPU", "cpu", GB, GB)], need)
    assert (answer.fits, fit_info(answer)["needs"]) == (False, None)


rooms = st.lists(
    st.builds(
        card,
        st.integers(0, 60),
        st.tuples(st.sampled_from("abc"), st.integers(1, 30)),
        st.tuples(st.sampled_from("def"), st.integers(1, 30)),
        name=st.sampled_from("01"),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda room: room.id,
)


@given(rooms, st.sampled_from([None, 8192, 65_536]), st.sampled_from([None, 1, 8]))
def test_places_and_ways_out_hold(
    found: list[Room], context: int | None, batch: int | None
) -> None:
    load_config = replace(CUDA, max_context=context, max_batch=batch)
    answer = fit(LLAMA, [load_config], found, need)
    if answer.place is not None:
        _check(answer.place, need(load_config).bytes, found)
    else:
        assert all(_most(room) < need(load_config).bytes for room in found)
    for way in answer.suggestions:
        changed = replace(load_config, **way.settings)  # type: ignore[arg-type]
        assert need(changed).bytes == way.needs_bytes < need(load_config).bytes
        _check(way.place, way.needs_bytes, found)


def _most(room: Room) -> int:
    return room.free_bytes + sum(size for _, size in room.evictable)


def _check(place: Place, needed: int, found: list[Room]) -> None:
    """There is room, and nobody goes in vain."""
    room = next(room for room in found if room.id == place.device)
    gone = [size for model, size in room.evictable if model in place.evict]
    assert room.free_bytes + sum(gone) >= needed
    assert all(room.free_bytes + sum(gone) - size < needed for size in gone)


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
        (LoadConfig("fake", fake_bytes=5), 5, 0),
    ],
)
def test_estimates(load_config: LoadConfig, weights: int, cache: int) -> None:
    footprint = estimate(LLAMA, load_config)
    assert (footprint.weights, footprint.cache) == (weights, cache)
    if load_config.fake_bytes is not None:
        assert footprint.total == 5
