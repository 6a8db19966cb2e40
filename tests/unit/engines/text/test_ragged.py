"""Prompts by one call of ragged attention: what it is given, by a stand-in that computes on a CPU
what torch documents of its own, which needs a card."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.engines.text import ragged
from workers.engines.text.attention import attend
from workers.engines.text.batch import BatchBuilder
from workers.engines.text.cache import LayerShape, PagedCache
from workers.engines.text.plan import Chunk, Plan, Sequence

CPU = torch.device("cpu")


def stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """Attend piece by piece: causality is aligned to the end, the window counts to the left."""
    left, right = window_size
    assert right == 0
    assert enable_gqa == (query.shape[1] != key.shape[1])
    parts = []
    for (first, last), (low, high) in zip(
        zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True),
        zip(cu_seq_k[:-1].tolist(), cu_seq_k[1:].tolist(), strict=True),
        strict=True,
    ):
        assert last - first <= max_q
        assert high - low <= max_k
        places = torch.arange(high - low)
        own = places[high - low - (last - first) :, None]
        seen = places <= own
        if left >= 0:
            seen &= places >= own - left
        parts.append(
            functional.scaled_dot_product_attention(
                query[first:last].transpose(0, 1),
                key[low:high].transpose(0, 1),
                value[low:high].transpose(0, 1),
                attn_mask=seen,
                scale=scale,
                enable_gqa=enable_gqa,
            ).transpose(0, 1)
        )
    return torch.cat(parts)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
def test_ragged_prompts_are_those_of_the_usual_way(
    window: int | None, heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole prompts, later pieces, and single tokens beside them; windows at their edges."""
    monkeypatch.setattr(ragged, "ragged_attention", lambda: stand_in)
    random = torch.Generator().manual_seed(heads)
    cache = PagedCache([LayerShape(kv_heads, 8, 8, window, CPU)], 20, 4, dtype=torch.float32)
    cache.pages[0][4:] = torch.randn(cache.pages[0][4:].shape, generator=random)
    row = Sequence("row", list(range(9)), blocks=[7, 1, 12])
    whole = Sequence("whole", list(range(6)), blocks=[3, 9])
    later = Sequence("later", list(range(13)), blocks=[2, 15, 4, 5])
    plan = Plan(
        [Chunk(row, 8, 9, samples=True)],
        [Chunk(whole, 0, 6, samples=True), Chunk(later, 5, 11, samples=False)],
        [],
        [],
    )
    query = torch.randn(1 + 6 + 6, heads, 8, generator=random)
    found = [
        attend(
            query,
            cache,
            0,
            BatchBuilder(4, {window}, dtype=torch.float32, device=CPU, ragged=each).build(plan),
            scaling=0.3,
        )
        for each in (False, True)
    ]
    assert (found[0] - found[1]).abs().max() < 1e-6


def test_ragged_attention_is_called_as_this_build_of_torch_has_it() -> None:
    function: Any = ragged.ragged_attention()
    if function is None:
        pytest.skip("this build of torch has none")
    theirs = inspect.signature(function).parameters
    ours = inspect.signature(stand_in).parameters
    assert list(theirs)[:7] == list(ours)[:7]
    assert {"scale", "window_size"} <= set(theirs)


def test_ragged_attention_is_not_for_a_cpu_nor_for_full_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = LayerShape(2, 8, 8, None, CPU)
    card = LayerShape(2, 8, 8, None, torch.device("cuda"))
    assert not ragged.usable([shape], torch.bfloat16)
    assert not ragged.usable([card], torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert ragged.usable([card], torch.bfloat16) == (ragged.ragged_attention() is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert not ragged.usable([card], torch.float16), "our own kernel runs there, torch's does not"
