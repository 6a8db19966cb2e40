"""A step's tensors on another layer's device: copied once, and only what attention needs."""

import itertools
import random

import torch

from workers.engines.text.batch import BatchBuilder, DecodeGroup, PromptPiece
from workers.engines.text.plan import Chunk, Plan, Sequence, next_chunk


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


def test_batch_for_a_kernel_has_each_rows_blocks_whoever_comes_goes_and_grows() -> None:
    """The table stays from step to step: only what differs is written."""
    chance = random.Random(7)
    builder = BatchBuilder(
        4, {None}, dtype=torch.float32, device=torch.device("cpu"), in_place=True
    )
    running: list[Sequence] = []
    fresh = itertools.count(1)
    for step in range(300):
        if not running or (len(running) < 9 and chance.random() < 0.3):
            length = chance.randint(1, 60)
            blocks = [next(fresh) for _ in range(-(-length // 4))]
            running.append(Sequence("", [step] * length, blocks=blocks, computed=length - 1))
        if len(running) > 1 and chance.random() < 0.2:
            running.pop(chance.randrange(len(running)))
        if chance.random() < 0.1:  # it lost its blocks, and was computed again
            again = chance.choice(running)
            again.blocks = [next(fresh) for _ in again.blocks]
        chance.shuffle(running)
        batch = builder.build(Plan([next_chunk(each, 1) for each in running], [], [], []))
        assert batch.paged is not None
        assert batch.paged.lengths.tolist() == [chunk.end for chunk in batch.order]
        assert {id(chunk.sequence) for chunk in batch.order} == {id(each) for each in running}
        for row, chunk in zip(batch.paged.table.tolist(), batch.order, strict=True):
            own = chunk.sequence.blocks
            assert row == own + [0] * (len(row) - len(own))
        for each in running:
            each.tokens.append(step)
            each.computed += 1
            if len(each.tokens) > 4 * len(each.blocks):
                each.blocks.append(next(fresh))
