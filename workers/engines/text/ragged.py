"""Computes attention of all pieces of prompts in one call of torch's ragged attention, on a card.

Their keys and values are gathered token by token, and causality is aligned to a piece's end: no
masks, no padding. What it does not know (soft caps, sinks, other formats) goes the usual way.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from workers.engines.text.cache import LayerShape
from workers.engines.text.sampling_params import upload

_MOST_DIM = 256
_FORMATS = (torch.bfloat16, torch.float16)
_LEAST_CAPABILITY = (8, 0)  #: of its kernels, in either format


@dataclass(slots=True, frozen=True)
class RaggedPrompts:
    """Holds pieces of prompts one after the other, and all tokens that each of them sees."""

    start: int  #: of their first token in the step
    slots: Tensor  #: [all tokens that are seen] int64, where in the cache they are
    queries: Tensor  #: [pieces + 1] int32, where each piece begins among the queries
    keys: Tensor  #: [pieces + 1] int32, the same among the tokens that are seen
    most_queries: int
    most_keys: int

    def to(self, device: torch.device) -> "RaggedPrompts":
        return replace(
            self,
            slots=self.slots.to(device),
            queries=self.queries.to(device),
            keys=self.keys.to(device),
        )

    @classmethod
    def of(
        cls, start: int, pieces: list[tuple[int, int]], slots: list[int], device: torch.device
    ) -> "RaggedPrompts":
        """``pieces``: how many tokens each has, and how many it sees; ``slots``: of the latter."""
        queries, keys = [0], [0]
        for own, seen in pieces:
            queries.append(queries[-1] + own)
            keys.append(keys[-1] + seen)
        sent = upload(device, ints={"slots": slots, "queries": queries, "keys": keys})
        return cls(
            start,
            sent["slots"],
            sent["queries"].int(),
            sent["keys"].int(),
            max(own for own, _ in pieces),
            max(seen for _, seen in pieces),
        )


def ragged_attention() -> Callable[..., Any] | None:
    """Return torch's function; None of a build that has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Callable[..., Any] = varlen_attn
    return found


@cache  # each layer of each step asks
def _asks_for_groups(attention: Callable[..., Any]) -> bool:
    """Return whether torch's function is to be told that there are fewer key heads: that of 2.11 is
    not."""
    return "enable_gqa" in inspect.signature(attention).parameters


def usable(shapes: Iterable[LayerShape], dtype: torch.dtype) -> bool:
    """Return whether torch's function computes layers of these shapes in a number format."""
    return ragged_attention() is not None and all(
        dtype in _FORMATS
        and shape.device.type == "cuda"
        and torch.cuda.get_device_capability(shape.device) >= _LEAST_CAPABILITY
        and shape.key_dim == shape.value_dim
        and shape.key_dim % 8 == 0
        and shape.key_dim <= _MOST_DIM
        for shape in shapes
    )


def attend_ragged(
    query: Tensor, pages: Tensor, shape: LayerShape, prompts: RaggedPrompts, scaling: float
) -> Tensor:
    """Compute the attention of pieces of prompts, whose keys and values are in the cache.

    query: [tokens of the step, heads, dim]; pages: [positions, width]
    -> [tokens of the pieces, heads * dim]
    """
    attention = ragged_attention()
    assert attention is not None
    rows = pages.index_select(0, prompts.slots)
    split = shape.kv_heads * shape.key_dim
    keys = rows[:, :split].view(len(rows), shape.kv_heads, shape.key_dim)
    values = rows[:, split:].view(len(rows), shape.kv_heads, shape.value_dim)
    is_grouped = query.shape[1] != shape.kv_heads and _asks_for_groups(attention)
    grouped = {"enable_gqa": True} if is_grouped else {}
    seen: Tensor = attention(
        query[prompts.start :].contiguous(),
        keys,
        values,
        prompts.queries,
        prompts.keys,
        prompts.most_queries,
        prompts.most_keys,
        scale=scaling,
        # So many tokens before each: ours counts the token itself.
        window_size=(-1 if shape.window is None else shape.window - 1, 0),
        **grouped,
    )
    return seen.reshape(len(seen), -1)
