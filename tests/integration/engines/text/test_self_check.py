"""The check at load, as a card has it: prompts of several blocks, in pieces and together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models.text import make_tiny_model
from tests.support.text_harness import BLOCK_SIZE, load
from workers.engines.base import Refused
from workers.engines.text import self_check
from workers.engines.text.batch import BatchBuilder
from workers.engines.text.cache import PagedCache
from workers.engines.text.runner import Runner
from workers.engines.text.self_check import within

FAMILIES = ("llama", "mistral", "gpt2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def _as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_check.LENGTHS, "cpu", self_check.LENGTHS["cuda"])


@pytest.mark.parametrize("family", FAMILIES)
def test_self_check_of_several_prompts_passes_what_is_computed_right(
    models: dict[str, Path], family: str
) -> None:
    engine, _ = load(models[family])
    assert isinstance(engine._runner, Runner)
    assert not any(page[BLOCK_SIZE:].any() for page in engine._runner._cache.pages), "it is clean"
    engine.close()


def test_self_check_runs_in_a_cache_of_one_block(models: dict[str, Path]) -> None:
    engine, _ = load(models["llama"], kv_cache_bytes=6144)
    assert engine._runner.blocks == 1
    engine.close()


def wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later pieces of a prompt do not see the pieces before them."""
    usual = BatchBuilder._piece_mask

    def blind(self: BatchBuilder, chunk: Any, window: int | None) -> torch.Tensor | None:
        mask = usual(self, chunk, window)
        if mask is not None and chunk.start > 12:
            mask[:, : chunk.start] = -torch.inf
        return mask

    monkeypatch.setattr(BatchBuilder, "_piece_mask", blind)


def wrong_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows of several blocks read each other's."""
    usual = PagedCache._gather

    def shifted(self: PagedCache, pages: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        return usual(self, pages, blocks.roll(1) if len(blocks) > 3 else blocks)

    monkeypatch.setattr(PagedCache, "_gather", shifted)


@pytest.mark.parametrize("mistake", [wrong_mask, wrong_gather])
def test_self_check_finds_what_one_short_prompt_would_not(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, mistake: Any
) -> None:
    mistake(monkeypatch)
    with pytest.raises(Refused) as refused:
        load(models["llama"])
    assert "as its library does" in refused.value.message
    monkeypatch.setitem(self_check.LENGTHS, "cpu", (12,))
    load(models["llama"])[0].close()


def test_self_check_takes_what_the_cache_holds() -> None:
    rows = [[1] * 5, [2] * 37, [3] * 70]
    assert [len(ids) for ids in within(rows, 100, 16)] == [5, 37, 70]
    assert [len(ids) for ids in within(rows, 3, 16)] == [5, 32]
    assert [len(ids) for ids in within(rows, 1, 16)] == [5]
    assert [len(ids) for ids in within(rows, 1, 4)] == [4]
