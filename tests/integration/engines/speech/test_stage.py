"""Steps of fixed sizes, as CUDA graphs need them, beside steps of exactly what is asked for."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import BarkModel

from tests.support.models.bark import make
from workers.engines.cuda_graphs import Replay, at_least, sizes
from workers.engines.speech.bark.gpt import CacheSlot, Stage

ROWS = 6
MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def new_stage(tmp_path_factory: pytest.TempPathFactory) -> MakeStage:
    folder = make(tmp_path_factory.mktemp("stage"))
    model = BarkModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    return lambda capture=None: Stage(model.semantic, ROWS, range(61), capture)


def compute_again(step: Replay) -> Replay:
    """Do all that CUDA's way does but capture: a replay computes again over the same tensors."""
    return step


def begin(stage: Stage, length: int, seed: int) -> CacheSlot:
    row = stage.open()
    assert row is not None
    generator = torch.Generator().manual_seed(seed)
    stage.read([row], stage.embed(torch.randint(60, (1, length), generator=generator)))
    return row


def play(stage: Stage) -> list[torch.Tensor]:
    """Let sentences come and go, while some are only read and others step."""
    rows = [begin(stage, length, length) for length in (5, 40, 12)]
    made = [stage.step(rows, [token, token + 1, token + 2]) for token in range(3)]
    stage.close(rows.pop(1))
    rows += [begin(stage, 90, 4), begin(stage, 7, 5)]
    made.append(stage.step(rows, [9, 8, 7, 6]))
    late = begin(stage, 200, 6)  # the fifth slot, beside steps of three
    made.append(stage.step(rows[:2], [1, 2]))
    made.append(stage.step([*rows, late], [5, 4, 3, 2, 1]))
    return made


def test_cuda_graph_sizes_change_nothing(new_stage: MakeStage) -> None:
    exact, padded = play(new_stage()), play(new_stage(compute_again))
    for n, (one, other) in enumerate(zip(exact, padded, strict=True)):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-5), n


def test_step_without_graphs_is_computed_where_the_model_lies(new_stage: MakeStage) -> None:
    """A card that is nearly full has no room for graphs. Here the stage has no numbers at all:
    operations over tensors of two devices raise there as they do on a card."""
    stage = Stage(copy.deepcopy(new_stage()._model).to("meta"), ROWS, range(61))
    row = stage.open()
    assert row is not None
    assert stage.step([row], [3]).device.type == "meta"


def test_cache_row_that_was_only_read_is_not_written_to_by_its_neighbours(
    new_stage: MakeStage,
) -> None:
    stage = new_stage(compute_again)
    first = [begin(stage, 4, seed) for seed in range(4)]
    stage.step(first, [1, 1, 1, 1])  # the fourth slot was at position 4 then
    stage.close(first.pop())
    late = begin(stage, 30, 9)
    assert late.slot == 3
    before = stage._keys[:, late.slot, :, : late.length].clone()
    stage.step(first, [2, 2, 2])  # three rows, in the size for four
    assert torch.equal(stage._keys[:, late.slot, :, : late.length], before)


def test_cuda_graph_sizes_hold_every_number_of_rows() -> None:
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 4, 6]
    assert sizes(8) == [1, 2, 4, 8]
    assert [at_least([1, 2, 4, 6], wanted) for wanted in range(1, 7)] == [1, 2, 4, 4, 6, 6]
