"""Notes of a download about the memory that its model will take."""

from datetime import UTC, datetime

import pytest

from bitinglip.scheduling.placement.dry_run import Snapshot
from bitinglip.scheduling.placement.estimate import LoadConfig, estimate
from bitinglip.scheduling.placement.fit import fit
from bitinglip.scheduling.placement.fit_note import fit_note
from bitinglip.scheduling.placement.footprints import MemoryEstimate
from bitinglip.scheduling.placement.ledger import DeviceCapacity, Reservation
from model_store.manifest import Manifest

GB = 1_000_000_000
MODEL = Manifest(
    name="new",
    kind="text",
    engine="text",
    max_context=8192,
    dtype="float32",
    weight_bytes=32 * GB,
    vocab_size=128_000,
    kv_bytes_per_token=131_072,
    source="hub:org/new",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("memory", "held", "said"),
    [
        (80, 0, "Memory: it fits on 0 and takes "),
        (80, 60, "Memory: it fits on 0 once other models are unloaded and takes "),
        (18, 0, "With kv_cache_bytes "),
        (8, 0, "Memory: new needs "),
    ],
)
def test_fit_note_tells_needs_by_format_beside_what_is_free(
    memory: int, held: int, said: str
) -> None:
    def need(load_config: LoadConfig) -> MemoryEstimate:
        footprint = estimate(MODEL, load_config)
        return MemoryEstimate(footprint.total, None, False, footprint)

    secret = Reservation(
        "secret/0", "secret", {"0": held * GB},
        state="ready", loaded_at=0.0, used_at=0.0, load_seconds=1.0,
    )  # fmt: skip
    snapshot = Snapshot(
        [DeviceCapacity("0", "cuda", memory * GB, name="card")], [secret] if held else [], 1000.0
    )
    note = fit_note(fit(MODEL, [LoadConfig("cuda")], snapshot, need))
    assert said in note
    assert " as float32, " in note
    assert f"0 has {memory - held}.0 GB of {memory}.0 GB free." in note
    assert "secret" not in note
