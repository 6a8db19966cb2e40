"""One autoregressive stage of Bark with a cache of fixed size, a row for each sentence.

The library's loop runs one voice a batch with attention written out. The stages are plain GPTs
with learned positions, so this computes the same over the library's own weights: prompts one by
one, then all rows together, each at its own length, through the fused attention kernel.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional


@dataclass(slots=True, eq=False)
class Row:
    """A sentence's place in the cache; ``length`` positions of it are filled."""

    slot: int
    length: int = 0


class Stage:
    """``model``: a BarkCausalModel; up to ``rows`` sentences at once."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model = model
        config = model.config
        self._heads, self._longest = config.num_heads, config.block_size
        self._width = config.hidden_size // config.num_heads
        weight = model.lm_head.weight
        shape = (config.num_layers, rows, self._heads, self._longest, self._width)
        self._keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.zeros_like(self._keys)
        self._free = list(range(rows))
        self._held: dict[int, Row] = {}

    @property
    def device(self) -> torch.device:
        device: torch.device = self._keys.device
        return device

    @property
    def used(self) -> int:
        return self._keys.shape[1] - len(self._free)

    def open(self) -> Row | None:
        """A place for a sentence; None while all are taken."""
        if not self._free:
            return None
        row = Row(self._free.pop(0))
        self._held[row.slot] = row
        return row

    def close(self, row: Row) -> None:
        del self._held[row.slot]
        self._free.append(row.slot)
        self._free.sort()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._model.input_embeds_layer(tokens)
        return embedded

    def read(self, row: Row, embeds: torch.Tensor) -> torch.Tensor:
        """Begin a row anew with a prompt of shape (length, hidden); logits after its last token."""
        length = embeds.shape[0]
        positions = torch.arange(length, device=self.device)
        hidden = (embeds + self._model.position_embeds_layer(positions))[None]
        slot = slice(row.slot, row.slot + 1)

        def attend(layer: int, query: Any, key: Any, value: Any) -> Any:
            self._keys[layer, slot, :, :length] = key
            self._values[layer, slot, :, :length] = value
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)

        logits = self._forward(hidden, attend)
        row.length = length
        return logits[0]

    def step(self, rows: list[Row], tokens: list[int]) -> torch.Tensor:
        """Logits (rows, vocabulary) after one more token each.

        Computed for the whole span of slots up to the last of these: a view of the cache, where
        picking rows would copy it. What the others write lies behind what they have filled.
        """
        top = max(row.slot for row in rows) + 1
        fed, filled = [0] * top, [0] * top
        for slot, row in self._held.items():
            if slot < top:
                filled[slot] = min(row.length, self._longest - 1)
        for row, token in zip(rows, tokens, strict=True):
            fed[row.slot] = token
        lengths = torch.tensor(filled, device=self.device)
        embeds = self.embed(torch.tensor(fed, device=self.device))
        embeds = embeds + self._model.position_embeds_layer(lengths)
        longest = max(filled) + 1
        mask = torch.arange(longest, device=self.device)[None] <= lengths[:, None]
        slots = torch.arange(top, device=self.device)

        def attend(layer: int, query: Any, key: Any, value: Any) -> Any:
            keys, values = self._keys[layer, :top], self._values[layer, :top]
            keys[slots, :, lengths] = key[:, :, 0]
            values[slots, :, lengths] = value[:, :, 0]
            return functional.scaled_dot_product_attention(
                query, keys[:, :, :longest], values[:, :, :longest], attn_mask=mask[:, None, None]
            )

        logits = self._forward(embeds[:, None], attend)
        for row in rows:
            row.length += 1
        return logits[[row.slot for row in rows]]

    def _forward(self, hidden: torch.Tensor, attend: Any) -> torch.Tensor:
        """Through all layers; the logits of the last position of each row."""
        rows, length, size = hidden.shape
        for number, block in enumerate(self._model.layers):
            joined = block.attn.att_proj(block.layernorm_1(hidden))
            shape = (rows, length, self._heads, self._width)
            query, key, value = (
                part.view(shape).transpose(1, 2) for part in joined.split(size, dim=2)
            )
            mixed = attend(number, query, key, value).transpose(1, 2).reshape(rows, length, size)
            hidden = hidden + block.attn.out_proj(mixed)
            hidden = hidden + block.mlp(block.layernorm_2(hidden))
        logits: torch.Tensor = self._model.lm_head(self._model.layernorm_final(hidden[:, -1]))
        return logits.float()
