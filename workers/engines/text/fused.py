"""Computes the exact classes that are shaped like Llama in few large operations.

On a CPU a step of a small model is mostly the number of operations. Here the projections that
share an input are one, the rotation is three operations over queries and keys together, and one
copy writes keys and values. The arithmetic is that of the library's classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.packed_linear import PackedLinear, can_pack, join, pack, unmap
from workers.engines.text.attention import attend
from workers.engines.text.batch import Batch
from workers.engines.text.cache import PagedCache
from workers.engines.text.lora_layers import JoinedLoras
from workers.engines.upload import Upload

_CLASSES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class _Norm:
    """Computes the root mean square norm over the last dimension.

    On a CPU the library's is a dozen operations. The mean of x and -x together is zero and their
    variance is the mean square of x, so a layer norm over both is the same norm, in three.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        """Take a weight of [size]."""
        self._size = weight.shape[0]
        self._epsilon = epsilon
        self._mirror = weight.device.type == "cpu"
        self._weight = torch.cat((weight, weight)) if self._mirror else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise x, [tokens, size]."""
        if not self._mirror:
            return functional.rms_norm(x, (self._size,), self._weight, self._epsilon)
        both = torch.cat((x, -x), dim=-1)
        normed = functional.layer_norm(both, (2 * self._size,), self._weight, None, self._epsilon)
        return normed[:, : self._size]


@dataclass(slots=True, frozen=True)
class _HeadNorm:
    """Computes the norm of each query and key head."""

    weight: Tensor  #: [heads, head_dim], a row per query head and per key head
    epsilon: float

    def __call__(self, heads: Tensor) -> Tensor:
        """Normalise each head of [tokens, heads, head_dim]."""
        size = self.weight.shape[-1]
        return functional.rms_norm(heads, (size,), None, self.epsilon).mul_(self.weight)


@dataclass(slots=True, frozen=True)
class _Layer:
    attention_norm: _Norm
    qkv: PackedLinear | EightBitLinear
    head_norm: _HeadNorm | None  #: Qwen3 has one
    output: PackedLinear | EightBitLinear
    mlp_norm: _Norm
    gate_up: PackedLinear | EightBitLinear
    down: PackedLinear | EightBitLinear
    query_width: int
    rotated_width: int  #: queries and keys
    head_dim: int
    gate_width: int
    scaling: float


class FusedDecoder:
    """Computes over the weights of a model for which :func:`can_fuse` holds.

    Where the projections are packed, which is a copy, the model is left without its weights.
    Elsewhere the model keeps them and still works: both compute over the same bytes.
    """

    def __init__(self, model: Any, placed: Callable[[int], None] = lambda _bytes: None) -> None:
        """Take over a model's weights; ``placed`` gets the bytes of those that are packed."""
        inner = model.model
        packed = can_pack(model.lm_head.weight.dtype, model.lm_head.weight.device)
        self._layers: list[_Layer] = []
        for module in inner.layers:
            self._layers.append(_fuse(module))
            if packed:
                placed(sum(parameter.nbytes for parameter in module.parameters()))
                _drop_weights(module)
        self._norm = _norm(inner.norm)
        self._head = pack(model.lm_head)
        if packed:
            if model.lm_head.weight is not inner.embed_tokens.weight:
                _drop_weights(model.lm_head)
            unmap(model)  # the embedding is left, and would keep the whole file mapped
        self._embedding: Tensor = inner.embed_tokens.weight.detach()
        self._rotary = inner.rotary_emb
        self.loras: JoinedLoras | None = None  #: what goes around the layers of steps with LoRAs

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        x = functional.embedding(batch.ids, self._embedding)  # [tokens, hidden]
        cos, sin = self._rotation(x, batch.positions)
        layers: Iterable[_Layer] = self._layers
        if batch.lora is not None and self.loras is not None:
            layers = self.loras.around(self._layers, batch.lora)
        for index, layer in enumerate(layers):
            x = x + _attend(layer, index, x, cos, sin, batch, cache)
            gate_up = layer.gate_up(layer.mlp_norm(x))
            gate = functional.silu(gate_up[:, : layer.gate_width])
            x += layer.down(gate.mul_(gate_up[:, layer.gate_width :]))
        if batch.sampled is not None:
            x = x.index_select(0, batch.sampled)
        return self._head(self._norm(x))

    def close(self) -> None:
        self._layers.clear()

    def _rotation(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, [tokens, 1, head_dim] each.

        The first half of the sine is negative, so that turning a pair is
        ``x * cos + roll(x) * sin``.
        """
        cos, sin = self._rotary(x[None], positions[None])  # [1, tokens, head_dim]
        sin = sin[0].clone()
        sin[:, : sin.shape[1] // 2].neg_()
        return cos[0].unsqueeze(1), sin.unsqueeze(1)


def can_fuse(model: Any) -> bool:
    """True if the model is exactly of a class and of settings that the fused decoder computes."""
    config = model.config
    return (
        type(model) in _CLASSES
        and config.hidden_act == "silu"
        and all(_is_plain(module) for module in _linears(model))
        and len({type(module) for module in _linears(model)[:-1]}) == 1
        and _head_dim(config) % 2 == 0
    )


def _is_plain(module: nn.Module) -> bool:
    """True for a layer that is computed here: with weights of torch's own, or of 8 bits."""
    own = type(module) is nn.Linear and type(module.weight) is nn.Parameter
    return own or type(module) is EightBitLinear


def may_fuse(config: Any) -> bool:
    """True if a model of this configuration is likely to be one that :func:`can_fuse`."""
    known: Any = AutoModelForCausalLM._model_mapping
    kind = type(config)
    quantized = getattr(config, "quantization_config", None) is not None
    return not quantized and kind in known and known[kind] in _CLASSES


def move(
    model: Any,
    device: torch.device,
    dtype: torch.dtype,
    placed: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Move a model to the device, tensor by tensor in the number format; buffers keep theirs.

    The weights may be mapped from their files: no copy of the model is made in RAM. Projections
    that the fused decoder computes as one are joined on the way: joined after it, the parts would
    leave gaps there that are too small for the next joined ones. ``placed`` gets the bytes of each
    tensor that was copied.
    """
    device = torch.empty(0, device=device).device  # "cuda" differs from the "cuda:0" of tensors
    upload = Upload(device)

    def put(source: Tensor, out: Tensor) -> None:
        upload.put(source, out)
        placed(source.nbytes)

    quantized = any(isinstance(each, EightBitLinear) for each in model.modules())
    if not quantized and can_fuse(model) and not can_pack(dtype, device):
        for layer in model.model.layers:
            join(*_qkv(layer.self_attn), device=device, dtype=dtype, put=put)
            join(layer.mlp.gate_proj, layer.mlp.up_proj, device=device, dtype=dtype, put=put)
    moved: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay tied
    for module in model.modules():
        for name, own in list(module.named_parameters(recurse=False)):
            if own not in moved:
                there = own.detach()
                if own.device != device or own.dtype != dtype:
                    there = torch.empty_like(there, device=device, dtype=dtype)
                    put(own.detach(), there)
                moved[own] = nn.Parameter(there, requires_grad=False)
            setattr(module, name, moved[own])
    upload.finish()
    model.config.dtype = dtype
    model.to(device)  # what is left: the buffers


def _attend(
    layer: _Layer,
    index: int,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    batch: Batch,
    cache: PagedCache,
) -> Tensor:
    """Compute the attention block of one layer. x: [tokens, hidden] -> the same"""
    qkv = layer.qkv(layer.attention_norm(x))  # [tokens, queries | keys | values]
    heads = qkv[:, : layer.rotated_width].view(len(x), -1, layer.head_dim)
    source = heads if layer.head_norm is None else layer.head_norm(heads)
    turned = torch.roll(source, layer.head_dim // 2, -1)
    # Into its own place: keys and values stay side by side, as the cache holds them.
    torch.addcmul(source * cos, turned, sin, out=heads)
    cache.write(index, batch.slots, qkv[:, layer.query_width :])
    query = qkv[:, : layer.query_width].view(len(x), -1, layer.head_dim)
    return layer.output(attend(query, cache, index, batch, scaling=layer.scaling))


def _fuse(module: Any) -> _Layer:
    attention, mlp = module.self_attn, module.mlp
    head_dim = attention.head_dim
    queries = attention.q_proj.out_features
    keys = attention.k_proj.out_features
    return _Layer(
        attention_norm=_norm(module.input_layernorm),
        qkv=pack(*_qkv(attention)),
        head_norm=_head_norm(attention, queries // head_dim, keys // head_dim),
        output=pack(attention.o_proj),
        mlp_norm=_norm(module.post_attention_layernorm),
        gate_up=pack(mlp.gate_proj, mlp.up_proj),
        down=pack(mlp.down_proj),
        query_width=queries,
        rotated_width=queries + keys,
        head_dim=head_dim,
        gate_width=mlp.gate_proj.out_features,
        scaling=attention.scaling,
    )


def _qkv(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.detach(), module.variance_epsilon)


def _head_norm(attention: Any, queries: int, keys: int) -> _HeadNorm | None:
    """Return the norms of query heads and of key heads as one, a row of weights per head."""
    if not hasattr(attention, "q_norm"):
        return None
    rows = [attention.q_norm.weight.detach()] * queries + [attention.k_norm.weight.detach()] * keys
    return _HeadNorm(torch.stack(rows), attention.q_norm.variance_epsilon)


def _drop_weights(module: nn.Module) -> None:
    """Free weights that are kept in packed form."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def _linears(model: Any) -> list[nn.Module]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = model.model.layers
    found = [getattr(layer.self_attn, name) for layer in layers for name in names]
    found += [
        getattr(la.mlp, name) for la in layers for name in ("gate_proj", "up_proj", "down_proj")
    ]
    return [*found, model.lm_head]


def _head_dim(config: Any) -> int:
    own: int | None = getattr(config, "head_dim", None)
    return own or int(config.hidden_size // config.num_attention_heads)
