"""Memory estimates of image models: on a card, and in RAM when offloaded."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.placement.dry_run import Snapshot
from bitinglip.scheduling.placement.estimate import OFFLOADS, LoadConfig, estimate
from bitinglip.scheduling.placement.fit import fit, fit_info
from bitinglip.scheduling.placement.footprints import Footprints, MemoryEstimate
from bitinglip.scheduling.placement.ledger import DeviceCapacity
from bitinglip.settings import Settings
from model_store.demo.image import make_image_model
from model_store.headers import read_header
from model_store.inspection import inspect
from model_store.manifest import Manifest
from workers.devices import Devices

GB = 1_000_000_000
#: of the real SDXL's shape, stored in half precision
SDXL = Manifest(
    name="sdxl",
    kind="image",
    engine="image",
    dtype="float16",
    weight_bytes=int(6.9 * GB),
    components={"unet": int(5.1 * GB), "text_encoder_2": int(1.4 * GB), "vae": int(0.4 * GB)},
    denoiser_width=320,
    decoder_width=128,
    source="test",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
CARD = LoadConfig("cuda", pixels=1024 * 1024)


def total(**changes: Any) -> int:
    return estimate(SDXL, LoadConfig(**{"device": "cuda", "pixels": 1024 * 1024, **changes})).total


def test_estimate_is_the_weights_and_the_larger_peak() -> None:
    found = estimate(SDXL, CARD)
    assert found.weights == SDXL.weight_bytes
    assert 1 * GB < found.activations < 6 * GB


def test_estimate_grows_with_pixels_images_and_bytes() -> None:
    assert total() < total(pixels=2048 * 2048)
    assert total(max_batch=1) < total(max_batch=8)
    assert total() < total(dtype="float32")
    assert estimate(SDXL, LoadConfig("cpu")).weights == 2 * SDXL.weight_bytes, "float32 on a CPU"


def test_offload_leaves_only_the_part_that_works_on_the_card() -> None:
    sizes = [estimate(SDXL, LoadConfig("cuda", offload=mode)).weights for mode in OFFLOADS]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] == SDXL.components["unet"]
    # A group of layers, and the decoder, which is cast to float32 where it overflows.
    assert sizes[2] == SDXL.components["unet"] // 10 + SDXL.components["vae"]


def test_estimate_of_an_old_manifest() -> None:
    old = Manifest(
        name="old",
        kind="image",
        engine="image",
        dtype="float16",
        weight_bytes=2 * GB,
        source="test",
        created_at=SDXL.created_at,
    )
    assert estimate(old, CARD).weights == 2 * GB


def test_estimate_reads_what_it_needs_from_the_files(tmp_path: Path) -> None:
    make_image_model(tmp_path)
    found = inspect(tmp_path)
    sizes = {
        path.parent.name: sum(tensor.nbytes for tensor in read_header(path).values())
        for path in tmp_path.rglob("*.safetensors")
    }
    assert found.components == sizes
    assert sum(sizes.values()) == found.weight_bytes
    assert (found.denoiser_width, found.decoder_width) == (16, 8)


def survey(card_bytes: int, **image: Any) -> ResourceFacts:
    settings = Settings.model_validate({"models": {"sdxl": {"image": image}}})
    return ResourceFacts(settings, Devices.find([("card", card_bytes)]), Footprints())


@pytest.mark.parametrize(
    ("card", "mode"), [(40 * GB, "none"), (20 * GB, "model"), (10 * GB, "group")]
)
def test_offload_is_as_little_as_the_card_makes_needed(card: int, mode: str) -> None:
    assert survey(card).load_config(SDXL, "fake").offload == mode


@pytest.mark.parametrize(
    ("card", "ram", "mode"),
    [(24, 8, "none"), (5, 64, "group"), (5, 12, "group_low_ram"), (5, 4, "group")],
)
def test_offload_is_what_the_ram_has_room_for(
    monkeypatch: pytest.MonkeyPatch, card: int, ram: int, mode: str
) -> None:
    """Check that where neither has room, the refusal names the RAM of the mildest offload."""
    ours = survey(card * GB)
    devices = [
        DeviceCapacity("0", "cuda", card * GB),
        DeviceCapacity("cpu", "cpu", ram * GB * 8 // 10, physical=ram * GB),
    ]
    monkeypatch.setattr(ours, "capacities", lambda: devices)
    assert ours.load_config(SDXL, "cuda").offload == mode


def test_offload_of_the_settings_is_obeyed_and_a_cpu_has_none() -> None:
    assert survey(100 * GB, offload="group").load_config(SDXL, "fake").offload == "group"
    assert survey(1, offload="none").load_config(SDXL, "fake").offload == "none"
    assert survey(1).load_config(SDXL, "cpu").offload == "none"


def test_estimate_takes_the_size_of_the_settings() -> None:
    assert survey(1, width=512, height=768).load_config(SDXL, "cpu").pixels == 512 * 768


def test_fit_suggestions_are_named_and_true() -> None:
    def need(load_config: LoadConfig) -> MemoryEstimate:
        footprint = estimate(SDXL, load_config)
        return MemoryEstimate(footprint.total, None, False, footprint)

    device = DeviceCapacity("0", "cuda", 10 * GB, headroom=GB)
    answer = fit(SDXL, [CARD], Snapshot([device]), need)
    assert answer.verdict == "does_not_fit"
    ways = {way["setting"]: way for way in fit_info(answer)["ways_out"]}
    assert ways["models.sdxl.image.offload"]["value"] == "model"
    for way in answer.suggestions:
        assert way.needs_bytes <= device.usable
