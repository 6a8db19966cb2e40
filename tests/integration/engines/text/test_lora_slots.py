"""LoRAs beside graphs that are captured, and after memory that did not suffice."""

from collections import Counter
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from tests.integration.engines.text.test_loras import LORAS, Family, asked, check, open_engine
from tests.support.engine_runs import finals, run_to_end, step_until, submit
from tests.support.models.adapters import make_text_lora
from tests.support.models.text import make_tiny_model
from tests.support.text_harness import done
from workers.engines.cuda_graphs import Replay
from workers.engines.text import decode_graphs, runners
from workers.engines.text.lora_files import LoraWeights
from workers.engines.text.lora_layers import LoraStack
from workers.engines.text.lora_slots import LoraSlots
from workers.engines.text.runner import Runner
from workers.protocol import Failed


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("gpt2")
    return Family(make_tiny_model("gpt2", root / "base"), root, LORAS["gpt2"])


def test_lora_of_the_step_before_is_no_part_of_a_graph_that_is_captured(
    gpt2: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the library's own forward has LoRAs by hooks, which a capture would record."""
    monkeypatch.setattr(runners, "_capture", lambda _loaded, _graphs: lambda step: step)
    engine = open_engine(gpt2.base, text={"graphs": "lazy"})
    try:
        jobs = [asked("0", gpt2.loras[0], max_tokens=4), asked("None", None, max_tokens=12)]
        ends = done(run_to_end(engine, *jobs))
        for lora in (0, None):
            check(gpt2, engine, lora, "one two", ends[str(lora)])
        assert isinstance(engine._runner, Runner)
        assert engine._runner.graphs
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_lora_steps_are_graphs_while_their_matrices_lie_where_they_lay(
    name: str, gpt2: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card's graph reads the addresses that it was captured with: the stand-in looks at them."""
    root = tmp_path / name
    family = gpt2 if name == "gpt2" else Family(make_tiny_model(name, root), tmp_path, LORAS[name])
    replayed: Counter[bool] = Counter()

    def capture(step: Any) -> Replay:
        with_loras = step.args[2]
        lay = addresses()

        def replay() -> torch.Tensor:
            assert not with_loras or addresses() == lay
            replayed[with_loras] += 1
            logits: torch.Tensor = step()
            return logits

        return replay

    made: list[LoraSlots] = []
    of = LoraSlots.of.__func__  # type: ignore[attr-defined]

    def noting(cls: type[LoraSlots], *given: Any) -> LoraSlots:
        made.append(of(cls, *given))
        return made[0]

    def addresses() -> dict[str, tuple[int, int]]:
        stacks = made[0]._stacks.items()
        return {path: (each._a.data_ptr(), each._b.data_ptr()) for path, each in stacks}

    monkeypatch.setattr(runners, "_capture", lambda _loaded, _graphs: capture)
    monkeypatch.setattr(decode_graphs, "_SETTLED", 2)
    monkeypatch.setattr(LoraSlots, "of", classmethod(noting))  # to know it while it is loaded
    engine = open_engine(family.base, most=3, text={"graphs": "lazy", "overlap": "on"})
    assert replayed[True], "steps with LoRAs were compared at load"
    replayed.clear()
    try:
        first = [asked("0", family.loras[0], max_tokens=24), asked("None", None, max_tokens=30)]
        submit(engine, *first)
        events = step_until(engine, lambda _: replayed[True] > 4)
        alone = replayed[True]
        ends = done(events + run_to_end(engine, asked("1", family.loras[1], max_tokens=24)))
        assert replayed[True] > alone > 4, "the second's rank is larger: all are captured again"
        again = done(run_to_end(engine, *first, asked("1", family.loras[1], max_tokens=24)))
        for lora in (0, 1, None):
            check(family, engine, lora, "one two", ends[str(lora)])
            assert again[str(lora)].choices[0].text == ends[str(lora)].choices[0].text
    finally:
        engine.close()


def test_lora_that_leaves_leaves_its_memory_to_the_next(tmp_path: Path) -> None:
    """The fused decoder's layers have been around the matrices of the first."""
    base = make_tiny_model("llama", tmp_path / "base")
    loras = [make_text_lora(base, tmp_path / f"{rank}", r=rank) for rank in (16, 4)]
    engine = open_engine(base, most=1)
    try:
        run_to_end(engine, asked("0", loras[0]))
        slots = engine._runner.loras
        assert slots is not None
        left = [ref(each) for each in slots._stacks.values()]
        submit(engine, asked("1", loras[1]))
        filled: list[int] = []
        fill = slots._fill

        def filling(slot: int, weights: LoraWeights) -> None:
            filled.append(sum(each() is not None for each in left))
            fill(slot, weights)

        slots._fill = filling  # type: ignore[method-assign]  # it looks first, then does the same
        done(run_to_end(engine))
        assert left
        assert filled == [0]
        assert {len(each._a[0]) for each in slots._stacks.values()} == {8}
    finally:
        engine.close()


def test_lora_is_held_after_memory_ran_out_for_a_larger_one(
    gpt2: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stacks have grown by then, and others have not."""
    engine = open_engine(gpt2.base, most=3, rank=32)
    grow, left = LoraStack.grow, 3

    def growing(stack: LoraStack, slots: int, rank: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError
        grow(stack, slots, rank)

    try:
        large = make_text_lora(gpt2.base, tmp_path, target_modules=["c_attn"], r=32)
        submit(engine, asked("0", gpt2.loras[0], max_tokens=20))
        engine.step()
        with monkeypatch.context() as patch:
            patch.setattr(LoraStack, "grow", growing)
            submit(engine, asked("large", large))
            assert isinstance(finals(engine.step())["large"], Failed)
        ends = done(run_to_end(engine, asked("1", gpt2.loras[1])))
        for lora in (0, 1):
            check(gpt2, engine, lora, "one two", ends[str(lora)])
    finally:
        engine.close()
