"""The layers of LoRAs in one batch: each token gets its own, wherever the slots lie."""

import pytest
import torch

from workers.engines.text.lora_files import LoraPair
from workers.engines.text.lora_layers import NO_SLOT, LoraRows, LoraStack


@pytest.mark.parametrize(
    ("places", "apart"),
    [([0, 11, NO_SLOT, 0], True), ([3, 4, 5, NO_SLOT], False), ([11, 11], False)],
)
def test_lora_adds_to_its_own_tokens_however_far_its_slot_is(
    places: list[int], apart: bool
) -> None:
    torch.manual_seed(1)
    stack = LoraStack((6, 5), 12, 2, dtype=torch.float32, device="cpu")
    pairs = {slot: LoraPair(torch.randn(2, 6), torch.randn(2, 5)) for slot in (0, 3, 4, 5, 7, 11)}
    for slot, pair in pairs.items():
        stack.put(slot, pair)
    rows = LoraRows.of(places, torch.tensor(places))
    assert (rows.apart is not None) is apart
    x = torch.randn(len(places), 6)
    found = torch.zeros(len(places), 5)
    stack.add(x, found, rows)
    for token, slot in enumerate(places):
        own = pairs.get(slot)
        expected = torch.zeros(5) if own is None else x[token] @ own.a.T @ own.b
        torch.testing.assert_close(found[token], expected)
