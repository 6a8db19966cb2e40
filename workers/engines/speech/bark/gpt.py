"""Computes an autoregressive stage of Bark with a cache of fixed size, a row for each sentence.

The library's loop runs one voice a batch with attention written out. The stages are plain GPTs
with learned positions, so this computes the same over the library's own weights: prompts of one
length together, then all rows together, each at its own length, by the fused attention kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workers.engines.cuda_graphs import Capture, Graphs, has_room
from workers.engines.packed_linear import PackedLinear

#: (layer, query, key, value) -> what the query found; each of (rows, heads, length, width)
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(slots=True, eq=False)
class CacheSlot:
    """Names a sentence's row in the cache; ``length`` positions of it are filled."""

    slot: int
    length: int = 0


class Stage:
    """Runs a BarkCausalModel for up to ``rows`` sentences at once.

    ``answers`` is the part of the vocabulary that can follow; only its logits are computed.
    ``capture`` makes the replays of steps, which then have fixed sizes; without it, a step
    computes exactly the rows that it is given.
    """

    def __init__(
        self, model: Any, rows: int, answers: range, capture: Capture | None = None
    ) -> None:
        self._model = model
        weight = model.lm_head.weight.detach()
        self._head = PackedLinear(weight[answers.start : answers.stop], None)
        self.vocabulary: int = weight.shape[0]
        config = model.config
        self._heads, self._longest = config.num_heads, config.block_size
        self._width = config.hidden_size // config.num_heads
        shape = (config.num_layers, rows, self._heads, self._longest, self._width)
        self._keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.zeros_like(self._keys)
        self._free = list(range(rows))
        self._held: dict[int, CacheSlot] = {}
        self._graphs: Graphs | None = None
        if capture is not None and has_room(self.device):
            self._graphs = Graphs(self._advance, rows, self._longest, self.device, capture)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._keys.device
        return device

    @property
    def used(self) -> int:
        return self._keys.shape[1] - len(self._free)

    def open(self) -> CacheSlot | None:
        """Return a free row for a sentence; None while all are taken."""
        if not self._free:
            return None
        row = CacheSlot(self._free.pop(0))
        self._held[row.slot] = row
        return row

    def close(self, row: CacheSlot) -> None:
        del self._held[row.slot]
        self._free.append(row.slot)
        self._free.sort()

    def scrub(self, row: CacheSlot) -> None:
        """Zero what a broken sentence left: masked or not, NaN would reach the slot's next one."""
        self._keys[:, row.slot].zero_()
        self._values[:, row.slot].zero_()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._model.input_embeds_layer(tokens)
        return embedded

    def read(self, rows: list[CacheSlot], embeds: torch.Tensor) -> torch.Tensor:
        """Fill rows with prompts (rows, length, hidden); returns the logits after their ends."""
        length = embeds.shape[1]
        hidden = embeds + self._model.position_embeds_layer(
            torch.arange(length, device=self.device)
        )
        slots = torch.tensor([row.slot for row in rows], device=self.device)

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> torch.Tensor:
            self._keys[layer, slots, :, :length] = key
            self._values[layer, slots, :, :length] = value
            causal = query.shape[2] > 1
            return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)

        logits = self._forward(hidden, attend)
        for row in rows:
            row.length = length
        return logits

    def step(self, rows: list[CacheSlot], tokens: list[int]) -> torch.Tensor:
        """Return logits (rows, answers) after one more token each.

        They are computed for the whole span of slots up to the last of these: a view of the
        cache, where picking rows would copy it. What the others write lies behind what they have
        filled.
        """
        capacity = self._keys.shape[1]
        fed, filled = [0] * capacity, [0] * capacity
        for slot, row in self._held.items():
            filled[slot] = min(row.length, self._longest - 1)
        for row, token in zip(rows, tokens, strict=True):
            fed[row.slot] = token
        top = max(row.slot for row in rows) + 1
        if self._graphs is not None:
            logits = self._graphs.run(fed, filled, top)
        else:
            ids = torch.tensor(fed[:top], device=self.device)
            places = torch.tensor(filled[:top], device=self.device)
            logits = self._advance(ids, places, max(filled[:top]) + 1)
        for row in rows:
            row.length += 1
        return logits[[row.slot for row in rows]]

    def _advance(self, tokens: torch.Tensor, filled: torch.Tensor, longest: int) -> torch.Tensor:
        """Compute a token of each of the first rows.

        It is written behind the row's ``filled`` positions, and looks at the first ``longest``.
        Nothing is read back, so that the step can be captured.
        """
        top = len(tokens)
        embeds = self.embed(tokens) + self._model.position_embeds_layer(filled)
        mask = torch.arange(longest, device=self.device)[None] <= filled[:, None]
        slots = torch.arange(top, device=self.device)

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> torch.Tensor:
            keys, values = self._keys[layer, :top], self._values[layer, :top]
            keys[slots, :, filled] = key[:, :, 0]
            values[slots, :, filled] = value[:, :, 0]
            return functional.scaled_dot_product_attention(
                query, keys[:, :, :longest], values[:, :, :longest], attn_mask=mask[:, None, None]
            )

        return self._forward(embeds[:, None], attend)

    def _forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Return the logits of the last position of each row, after all layers."""
        hidden = forward_blocks(self._model.layers, self._heads, hidden, attend, last=True)
        last = self._model.layernorm_final(hidden[:, -1])
        return self._head(last).float()


def forward_blocks(
    layers: Any, heads: int, hidden: torch.Tensor, attend: Attend, *, last: bool = False
) -> torch.Tensor:
    """Put hidden states (rows, length, size) through the blocks of a stage.

    With ``last``, only those of the last position are returned, and the last block computes no
    others.
    """
    size = hidden.shape[2]
    for number, block in enumerate(layers):
        joined = block.attn.att_proj(block.layernorm_1(hidden))
        query, key, value = (
            part.unflatten(2, (heads, size // heads)).transpose(1, 2)
            for part in joined.split(size, dim=2)
        )
        if last and number == len(layers) - 1:
            query, hidden = query[:, :, -1:], hidden[:, -1:]
        mixed = attend(number, query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + block.attn.out_proj(mixed)
        hidden = hidden + block.mlp(block.layernorm_2(hidden))
    return hidden
