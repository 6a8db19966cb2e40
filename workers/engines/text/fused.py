"""Computes the exact classes that are shaped like Llama in few large operations.

On a CPU a step of a small model is mostly the number of operations. Here the projections that
share an input are one, the rotation is three operations over queries and keys together, and one
copy writes keys and values. The arithmetic is that of the library's classes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.packed_linear import can_pack, join, pack, unmap
from workers.engines.text.attention import attend
from workers.engines.text.batch import Batch
from workers.engines.text.cache import PagedCache
from workers.engines.text.fused_layers import (
    CLASSES,
    Layer,
    Rotation,
    gate_and_up,
    is_plain,
    query_key_value,
    read_ends,
    read_layer,
)
from workers.engines.text.fused_norms import norm_of
from workers.engines.text.lora_layers import JoinedLoras
from workers.engines.text.split import Places, place_of
from workers.engines.upload import Upload

#: Cosine and sine of each rotation, [tokens, 1, numbers that are rotated]
_Turns = dict[Rotation, tuple[Tensor, Tensor]]


class FusedDecoder:
    """Computes over the weights of a model for which :func:`can_fuse` holds.

    Where the projections are packed, which is a copy, the model is left without its weights.
    Elsewhere the model keeps them and still works: both compute over the same bytes.

    Layers may lie on several cards: what they read goes from card to card with the tokens, and
    what is the same for all layers of a card is copied there once a step.
    """

    def __init__(self, model: Any, placed: Callable[[int], None] = lambda _bytes: None) -> None:
        """Take over a model's weights; ``placed`` gets the bytes of those that are packed."""
        inner = model.model
        packed = can_pack(model.lm_head.weight.dtype, model.lm_head.weight.device)
        self._ends = read_ends(model)
        self._layers: list[Layer] = []
        for index, module in enumerate(inner.layers):
            self._layers.append(read_layer(model, index))
            if packed:
                placed(sum(parameter.nbytes for parameter in module.parameters()))
                _drop_weights(module)
        self._norm = norm_of(inner.norm)
        self._head = pack(model.lm_head)
        if packed:
            if model.lm_head.weight is not inner.embed_tokens.weight:
                _drop_weights(model.lm_head)
            unmap(model)  # the embedding is left, and would keep the whole file mapped
        self._embedding: Tensor = inner.embed_tokens.weight.detach()
        self._rotary = inner.rotary_emb
        self.loras: JoinedLoras | None = None  #: what goes around the layers of steps with LoRAs
        self._rotations = {each.rotation for each in self._layers if each.rotation is not None}

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        x = functional.embedding(batch.ids, self._embedding)  # [tokens, hidden]
        if self._ends.embedding_scale is not None:
            x = x * self._ends.embedding_scale
        first = turns = {each: self._turn(each, x, batch.positions) for each in self._rotations}
        layers: Iterable[Layer] = self._layers
        if batch.lora is not None and self.loras is not None:
            layers = self.loras.around(self._layers, batch.lora)
        here = batch
        for index, layer in enumerate(layers):
            if layer.device != x.device:
                x = x.to(layer.device)
                here = batch.on(layer.device)
                turns = {
                    each: (cos.to(layer.device), sin.to(layer.device))
                    for each, (cos, sin) in first.items()
                }
            normed = x if layer.attention_norm is None else layer.attention_norm(x)
            seen = _attend(layer, index, normed, turns, here, cache)
            if layer.attention_end_norm is not None:
                seen = layer.attention_end_norm(seen)
            x = torch.add(x, seen, alpha=layer.residual_scale)
            if not layer.parallel:
                normed = x if layer.mlp_norm is None else layer.mlp_norm(x)
            made = _feed_forward(layer, normed)
            if layer.mlp_end_norm is not None:
                made = layer.mlp_end_norm(made)
            x.add_(made, alpha=layer.residual_scale)
        if here.sampled is not None:
            x = x.index_select(0, here.sampled)
        x = self._norm(x.to(self._ends.norm_device))
        return self._logits(x.to(self._ends.head_device)).to(batch.ids.device)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self._head(x)
        if self._ends.logit_scale is not None:
            logits = logits * self._ends.logit_scale
        if self._ends.logit_softcap is not None:
            logits = torch.tanh(logits / self._ends.logit_softcap) * self._ends.logit_softcap
        return logits

    def close(self) -> None:
        self._layers.clear()

    def _turn(self, rotation: Rotation, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, [tokens, 1, numbers that are rotated] each.

        The sine of the first number of a pair is negative, so that turning the pair is
        ``x * cos + swapped(x) * sin``.
        """
        kind = () if rotation.kind is None else (rotation.kind,)
        # Of x only device and format matter. A model that the library has split has the module on
        # any of its cards, and what it is called with goes there.
        cos, sin = self._rotary(x[None, :1], positions[None], *kind)  # [1, tokens, ..]
        cos, sin = cos.to(x.device), sin.to(x.device)
        sin = sin[0].clone()
        first = sin[:, ::2] if rotation.interleaved else sin[:, : sin.shape[1] // 2]
        first.neg_()
        return cos[0].unsqueeze(1), sin.unsqueeze(1)


def can_fuse(model: Any) -> bool:
    """True if the model is exactly of a class and of settings that the fused decoder computes."""
    return type(model) in CLASSES and is_plain(model)


def may_fuse(config: Any) -> bool:
    """True if a model of this configuration is likely to be one that :func:`can_fuse`."""
    known: Any = AutoModelForCausalLM._model_mapping
    kind = type(config)
    quantized = getattr(config, "quantization_config", None) is not None
    return not quantized and kind in known and known[kind] in CLASSES


def move(
    model: Any,
    places: Places,
    dtype: torch.dtype,
    placed: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Move a model to its devices, tensor by tensor in the number format; buffers keep theirs.

    The weights may be mapped from their files: no copy of the model is made in RAM. Projections
    that the fused decoder computes as one are joined on the way, layer by layer: joined after it,
    the parts would leave gaps there that are too small for the next joined ones. ``placed`` gets
    the bytes of each tensor that was copied.
    """
    # "cuda" differs from the "cuda:0" of tensors.
    exact = {place: torch.empty(0, device=place).device for place in set(places.values())}
    places = {path: exact[place] for path, place in places.items()}
    uploads = {place: Upload(place) for place in set(places.values())}

    def put(source: Tensor, out: Tensor) -> None:
        uploads[out.device].put(source, out)
        placed(source.nbytes)

    _join_layers(model, places, dtype, put)
    moved: dict[Tensor, Tensor] = {}  # tied ones stay tied
    for path, module in model.named_modules():
        for name, own in list(module.named_parameters(recurse=False)):
            if own not in moved:
                there, device = own.detach(), place_of(path, places)
                if own.device != device or own.dtype != dtype:
                    there = torch.empty_like(there, device=device, dtype=dtype)
                    put(own.detach(), there)
                moved[own] = nn.Parameter(there, requires_grad=False)
            setattr(module, name, moved[own])
        for name, own in list(module.named_buffers(recurse=False)):
            setattr(module, name, own.to(place_of(path, places)))
    for upload in uploads.values():
        upload.finish()
    model.config.dtype = dtype


def _join_layers(
    model: Any, places: Places, dtype: torch.dtype, put: Callable[[Tensor, Tensor], object]
) -> None:
    """Move the projections that the fused decoder computes as one, if it computes the model."""
    if any(isinstance(each, EightBitLinear) for each in model.modules()) or not can_fuse(model):
        return
    for index, layer in enumerate(model.model.layers):
        device = place_of(f"model.layers.{index}", places)
        if not can_pack(dtype, device):
            join(*query_key_value(layer.self_attn), device=device, dtype=dtype, put=put)
            join(*gate_and_up(layer.mlp), device=device, dtype=dtype, put=put)


def _attend(
    layer: Layer,
    index: int,
    x: Tensor,
    turns: _Turns,
    batch: Batch,
    cache: PagedCache,
) -> Tensor:
    """Compute the attention of one layer. x: [tokens, hidden], normed -> the same"""
    qkv = layer.qkv(x)  # [tokens, queries | keys | values]
    heads = qkv[:, : layer.rotated_width].view(len(x), -1, layer.head_dim)
    source = heads if layer.head_norm is None else layer.head_norm(heads)
    if layer.rotation is not None:
        cos, sin = turns[layer.rotation]
        if cos.shape[-1] < layer.head_dim:  # the other numbers stay as they are
            if source is not heads:
                heads.copy_(source)
            heads = heads[..., : cos.shape[-1]]
            source = heads
        # Into its own place: keys and values stay side by side, as the cache holds them.
        torch.addcmul(source * cos, _swapped(source, layer.rotation), sin, out=heads)
    elif source is not heads:
        heads.copy_(source)
    cache.write(index, batch.slots, qkv[:, layer.query_width :])
    query = qkv[:, : layer.query_width].view(len(x), -1, layer.head_dim)
    seen = attend(query, cache, index, batch, scaling=layer.scaling, softcap=layer.softcap)
    output: Tensor = layer.output(seen)
    return output


def _swapped(x: Tensor, rotation: Rotation) -> Tensor:
    """Return a copy of [tokens, heads, numbers] in which the numbers of each pair change places."""
    if rotation.interleaved:
        return x.view(*x.shape[:-1], -1, 2).flip(-1).view(x.shape)
    return torch.roll(x, x.shape[-1] // 2, -1)


def _feed_forward(layer: Layer, x: Tensor) -> Tensor:
    """Compute the MLP of one layer. x: [tokens, hidden], normed -> the same"""
    gate_up = layer.gate_up(x)
    gate = layer.activation(gate_up[:, : layer.gate_width])
    return layer.down(gate.mul_(gate_up[:, layer.gate_width :]))


def _drop_weights(module: nn.Module) -> None:
    """Free weights that are kept in packed form."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)
