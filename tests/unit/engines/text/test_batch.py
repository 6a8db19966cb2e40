"""A step's tensors on another layer's device: copied once, and only what attention needs."""

import torch

from workers.engines.text.batch import BatchBuilder, DecodeGroup, PromptPiece
from workers.engines.text.plan import Chunk, Plan, Sequence


def plan() -> Plan:
    old = Sequence("old", list(range(9)), blocks=[1, 2, 3], computed=8)
    new = Sequence("new", list(range(6)), blocks=[4, 5], computed=2)
    return Plan([Chunk(old, 8, 9, samples=True)], [Chunk(new, 2, 6, samples=True)], [], [])


def test_batch_follows_the_layers_over_the_devices() -> None:
    here, there = torch.device("cpu"), torch.device("meta")
    batch = BatchBuilder(4, {None, 5}, dtype=torch.float32, device=here).build(plan())
    assert batch.on(here) is batch
    moved = batch.on(there)
    assert batch.on(there) is moved
    tensors = [moved.slots]
    parts: list[DecodeGroup | PromptPiece] = [*moved.decodes, *moved.prompts]
    for part in parts:
        tensors += [part.table.blocks, *(mask for mask in part.masks.values() if mask is not None)]
    assert {tensor.device for tensor in tensors} == {there}
    assert [part.table.sequences for part in moved.decodes] == [1]
    assert moved.prompts[0].masks.keys() == batch.prompts[0].masks.keys()
    assert moved.order == batch.order
