"""Computes a batch with the library's own class, or a fused one for Llama's relatives.

Both take the weights from a model that transformers loaded, and both end in its own head.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from workers.engines.base import Refused
from workers.engines.text.attention import attend
from workers.engines.text.batch import Batch
from workers.engines.text.cache import LayerShape, PagedCache

_names = itertools.count()
#: What attention layers pass that changes nothing for a decoder without dropout.
_HARMLESS = frozenset({"dropout", "position_ids", "cache_position", "use_cache", "is_causal"})


class Decoder(Protocol):
    """Computes logits of a batch."""

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        """Write the batch's keys and values. -> logits of its sampled tokens, [rows, vocab]"""
        ...

    def close(self) -> None: ...


class LibraryDecoder:
    """Calls the model's own ``forward``; its attention layers come back here.

    They do so through the library's attention interface, under a name of this object's own. No
    mask function is registered under it, so the library builds no masks.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._name = f"bitinglip_{next(_names)}"
        self._layer: Callable[..., Tensor] | None = None
        self.plain = True  #: neither soft caps nor sinks, as far as ``probe`` has seen
        self._own = model.config._attn_implementation
        self._spread = len({parameter.device for parameter in model.parameters()}) > 1
        AttentionInterface.register(self._name, self._attention)
        try:
            model.set_attn_implementation(self._name)
        except ValueError as error:
            self.close()
            raise Unsupported("its class takes no attention of ours") from error

    def probe(self) -> list[LayerShape]:
        """Run one token to learn what each attention layer keeps.

        Raises :class:`Unsupported` for a model whose attention does not all come through the
        interface, or asks for something that :mod:`attention` does not do.
        """
        found: dict[int, LayerShape] = {}

        def record(layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
            if layer in found:
                raise Unsupported("layers share an attention module")
            window = how["window"]
            self.plain &= how["softcap"] is None and how["sinks"] is None
            found[layer] = LayerShape(
                key.shape[1], key.shape[2], value.shape[2], window, query.device
            )
            return query.new_zeros(query.shape[0], query.shape[1] * value.shape[2])

        device = self._model.device
        zero = torch.zeros(1, dtype=torch.long, device=device)
        self._run(zero, zero, zero, record)
        _check_layers(self._model.config, found)
        return [found[layer] for layer in range(len(found))]

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        def layer(
            index: int,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *,
            scaling: float,
            softcap: float | None,
            sinks: Tensor | None,
            window: int | None,  # noqa: ARG001  the cache's shapes hold it since the probe
        ) -> Tensor:
            here = batch.on(query.device)
            rows = torch.cat((key.flatten(1), value.flatten(1)), dim=1)  # [tokens, width]
            cache.write(index, here.slots, rows)
            return attend(query, cache, index, here, scaling=scaling, softcap=softcap, sinks=sinks)

        logits = self._run(batch.ids, batch.positions, batch.sampled, layer)
        return logits.to(batch.ids.device)

    def close(self) -> None:
        """Give the model its own attention back."""
        if self._model.config._attn_implementation != self._own:
            self._model.set_attn_implementation(self._own)
        AttentionInterface._global_mapping.pop(self._name, None)

    def _run(
        self, ids: Tensor, positions: Tensor, sampled: Tensor | None, layer: Callable[..., Tensor]
    ) -> Tensor:
        self._layer = layer
        if sampled is not None and self._spread:
            sampled = sampled.cpu()  # an index that suits the head's device, whichever it is
        try:
            output = self._model(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=0 if sampled is None else sampled,
            )
        finally:
            self._layer = None
        logits: Tensor = output.logits[0]
        return logits

    def _attention(
        self,
        module: Any,
        query: Tensor,  # [1, heads, tokens, key_dim]
        key: Tensor,  # [1, kv_heads, tokens, key_dim]
        value: Tensor,
        _mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,  # the library's name of sinks, [heads]
        **others: Any,
    ) -> tuple[Tensor, None]:
        for name, setting in others.items():
            if setting is not None and setting is not False and name not in _HARMLESS:
                raise Unsupported(f"its attention has {name}")
        if not getattr(module, "is_causal", True):
            raise Unsupported("it looks at later tokens")
        if self._layer is None:
            raise RuntimeError("the model was called from outside its decoder")
        seen = self._layer(
            module.layer_idx,
            query[0].transpose(0, 1),  # [tokens, heads, key_dim]
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=softcap,
            sinks=s_aux,
            window=sliding_window,
        )
        return seen.view(1, query.shape[2], query.shape[1], -1), None  # [1, tokens, heads, dim]


class Unsupported(Refused):
    """The paged cache cannot serve the model; ``reason`` says why, without a full stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "MODEL_LOAD_FAILED", f"The text engine does not support this model: {reason}."
        )
        self.reason = reason


def _check_layers(config: Any, found: dict[int, LayerShape]) -> None:
    if sorted(found) != list(range(config.num_hidden_layers)):
        layers = config.num_hidden_layers
        others = layers - len(found)
        raise Unsupported(f"{others} of its {layers} layers are not plain attention")
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in ("full_attention", "sliding_attention"):
            raise Unsupported(f"it has layers of the type {kind}")
        if kind == "sliding_attention" and found[layer].window is None:
            raise Unsupported("it does not tell the window of its sliding layers")
