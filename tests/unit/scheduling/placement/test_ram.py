"""The RAM of a load onto a card: largest part or shard, all of it where it is offloaded."""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest

from bitinglip.scheduling.placement.dry_run import Snapshot
from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from bitinglip.scheduling.placement.fit import FitAnswer, fit
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Reservation
from bitinglip.scheduling.placement.ram import RamNeed, ram_need
from model_store.manifest import FileEntry, Manifest

GB = 1_000_000_000
PROCESS = 600_000_000
CARD = LoadConfig("cuda", pixels=1 << 20)
IMAGE = Manifest(
    name="picture",
    kind="image",
    engine="image",
    dtype="bfloat16",
    weight_bytes=20 * GB,
    components={"transformer": 12 * GB, "text_encoder": 7 * GB, "vae": GB},
    denoiser_width=320,
    decoder_width=128,
    source="test",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def text(*shards: int) -> Manifest:
    files = tuple(
        FileEntry(f"model-{number}.safetensors", size, "") for number, size in enumerate(shards)
    )
    return Manifest(
        name="llama",
        kind="text",
        engine="text",
        dtype="bfloat16",
        weight_bytes=sum(shards),
        files=(*files, FileEntry("tokenizer.json", 9 * GB, "")),
        source="test",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("manifest", "load_config", "expected"),
    [
        (text(GB, GB, GB // 2), CARD, RamNeed(PROCESS + GB)),
        (text(5 * GB, 5 * GB), CARD, RamNeed(PROCESS + 2_048_000_000)),
        (text(20 * GB), CARD, RamNeed(PROCESS + 2_048_000_000)),
        (text(20 * GB), LoadConfig("cpu"), RamNeed()),
        # An adapter's own files tell nothing of its base's.
        (
            msgspec.structs.replace(text(1000), adapter_of="base", weight_bytes=GB),
            CARD,
            RamNeed(PROCESS + GB),
        ),
        (
            text(20 * GB),
            LoadConfig("cuda", prefix_ram_bytes=3 * GB),
            RamNeed(PROCESS + 3 * GB + 2_048_000_000, 3 * GB),
        ),
        (text(20 * GB), LoadConfig("cuda", claimed_bytes=7), RamNeed()),
        (IMAGE, LoadConfig("fake"), RamNeed()),
        (IMAGE, CARD, RamNeed(PROCESS + 2_048_000_000)),
        # In another number format than its files', a part is gathered before it is moved.
        (IMAGE, replace(CARD, dtype="float32"), RamNeed(PROCESS + 24 * GB)),
        (msgspec.structs.replace(IMAGE, dtype="float32"), CARD, RamNeed(PROCESS + 6 * GB)),
        (IMAGE, replace(CARD, offload="model"), RamNeed(PROCESS + 20 * GB, 20 * GB)),
        (IMAGE, replace(CARD, offload="group"), RamNeed(PROCESS + 40 * GB, 40 * GB)),
        (IMAGE, replace(CARD, offload="group_low_ram"), RamNeed(PROCESS + 20 * GB, 20 * GB)),
    ],
)
def test_ram_need_is_that_of_the_load(
    manifest: Manifest, load_config: LoadConfig, expected: RamNeed
) -> None:
    assert ram_need(manifest, load_config) == expected


def answered(
    manifest: Manifest, load_config: LoadConfig, ram: int, *held: Reservation, card: int = 80
) -> FitAnswer:
    devices = [
        DeviceCapacity("0", "cuda", card * GB),
        DeviceCapacity("cpu", "cpu", ram * GB * 8 // 10, physical=ram * GB),
    ]

    def need(load_config: LoadConfig) -> MemoryEstimate:
        footprint = estimate(manifest, load_config)
        return MemoryEstimate(footprint.total, None, False, footprint)

    return fit(manifest, [load_config], Snapshot(devices, held), need)


def test_ram_of_8_gb_loads_a_model_of_20_gb_onto_a_card() -> None:
    assert answered(text(*[5 * GB] * 4), CARD, ram=8).fits
    assert answered(text(20 * GB), CARD, ram=8).fits


@pytest.mark.parametrize(
    ("offload", "ram", "fits"),
    [
        ("none", 16, True),
        ("model", 16, False),
        ("group", 16, False),
        ("model", 32, True),
        ("group", 32, False),
        ("model", 64, True),
        ("group", 64, True),
        ("group_low_ram", 16, False),
        ("group_low_ram", 32, True),
    ],
)
def test_fit_of_an_offloaded_model_looks_at_ram(offload: str, ram: int, fits: bool) -> None:
    answer = answered(IMAGE, replace(CARD, offload=offload), ram)
    assert answer.fits is fits
    if not fits:
        needed = {"group": "40.6 GB of RAM"}.get(offload, "20.6 GB of RAM")
        assert needed in answer.message
        assert f"{ram}.0 GB of RAM can be had" in answer.message


def test_fit_says_what_must_leave_for_the_ram_of_a_load() -> None:
    held = Reservation("a/0", "a", {"cpu": 10 * GB}, state="ready")
    answer = answered(IMAGE, replace(CARD, offload="model"), 24, held)
    assert answer.verdict == "fits_after_eviction"
    assert answer.placement is not None
    assert answer.placement.devices == ("0",)
    assert answer.placement.evict == ("a",)


def test_prefixes_in_ram_are_memory_of_a_model_on_the_processor() -> None:
    plain, kept = LoadConfig("cpu"), LoadConfig("cpu", prefix_ram_bytes=3 * GB)
    assert estimate(text(2 * GB), kept).total - estimate(text(2 * GB), plain).total == 3 * GB
