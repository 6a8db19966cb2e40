"""Reads the layers of the library's classes as parts that the fused decoder computes.

The classes differ in where norms stand, what is scaled by what, and which heads are rotated how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Cohere2ForCausalLM,
    CohereForCausalLM,
    Exaone4ForCausalLM,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MinistralForCausalLM,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    Olmo3ForCausalLM,
    Phi3ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SeedOssForCausalLM,
    SmolLM3ForCausalLM,
)
from transformers.activations import SiLUActivation

from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.four_bit_linear import FourBitLinear, can_join
from workers.engines.packed_linear import PackedLinear, Quantized, pack
from workers.engines.text.fused_norms import AnyNorm, HeadNorm, head_norm_of, norm_of

CLASSES = (
    Cohere2ForCausalLM,
    CohereForCausalLM,
    Exaone4ForCausalLM,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MinistralForCausalLM,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    Olmo3ForCausalLM,
    Phi3ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SeedOssForCausalLM,
    SmolLM3ForCausalLM,
)
#: Their rotation is chosen by the kind of a layer; the others have one for all.
_ROTATED_BY_KIND = (Gemma3ForCausalLM, Olmo3ForCausalLM)
#: The first number of a query or key is rotated with its second, the third with its fourth.
_INTERLEAVED = (CohereForCausalLM, Cohere2ForCausalLM)
_PARALLEL = (CohereForCausalLM, Cohere2ForCausalLM)

Joined = PackedLinear | Quantized


@dataclass(slots=True, frozen=True)
class Rotation:
    """Names a rotation of queries and keys."""

    kind: str | None  #: of layers, which the library's module asks for; None: it does not
    interleaved: bool


@dataclass(slots=True, frozen=True)
class Layer:
    attention_norm: AnyNorm | None
    qkv: Joined
    head_norm: HeadNorm | None
    rotation: Rotation | None  #: None: positions are not known to this layer
    output: Joined
    attention_end_norm: AnyNorm | None  #: of what is added to the residual
    mlp_norm: AnyNorm | None
    gate_up: Joined
    activation: Callable[[Tensor], Tensor]  #: of the gate
    down: Joined
    mlp_end_norm: AnyNorm | None
    parallel: bool  #: attention and MLP have the same input, that of the attention's norm
    query_width: int
    rotated_width: int  #: queries and keys
    head_dim: int
    gate_width: int
    scaling: float
    softcap: float | None
    residual_scale: float
    device: torch.device


@dataclass(slots=True, frozen=True)
class Ends:
    """Holds what a class does before its first layer and after its head."""

    norm_device: torch.device  #: of the norm after the last layer
    head_device: torch.device

    embedding_scale: Tensor | float | None
    logit_scale: float | None
    logit_softcap: float | None


def read_layer(model: Any, index: int) -> Layer:
    """Return a layer of a model of one of ``CLASSES``."""
    module = model.model.layers[index]
    attention, mlp = module.self_attn, module.mlp
    head_dim: int = attention.head_dim
    qkv, gate_up = pack(*query_key_value(attention)), pack(*gate_and_up(mlp))
    query_width: int = attention.o_proj.in_features
    keys = (_outputs(*query_key_value(attention)) - query_width) // 2
    softcap = attention.attn_logit_softcapping if isinstance(model, Gemma2ForCausalLM) else None
    return Layer(
        attention_norm=_own_norm(module, "input_layernorm"),
        qkv=qkv,
        head_norm=head_norm_of(
            attention, queries=query_width // head_dim, keys=keys // head_dim, head_dim=head_dim
        ),
        rotation=_rotation(model, attention, index),
        output=pack(attention.o_proj),
        attention_end_norm=_end_norm(module, "post_attention_layernorm"),
        mlp_norm=_mlp_norm(module),
        gate_up=gate_up,
        activation=_activation(mlp),
        down=pack(mlp.down_proj),
        mlp_end_norm=_end_norm(module, "post_feedforward_layernorm"),
        parallel=isinstance(model, _PARALLEL),
        query_width=query_width,
        rotated_width=query_width + keys,
        head_dim=head_dim,
        gate_width=mlp.down_proj.in_features,
        scaling=attention.scaling,
        softcap=softcap,
        residual_scale=getattr(module, "residual_multiplier", 1.0),
        device=_device(attention.o_proj),
    )


def read_ends(model: Any) -> Ends:
    """Return what a model of one of ``CLASSES`` does at its beginning and its end."""
    inner, config = model.model, model.config
    scale = getattr(inner.embed_tokens, "embed_scale", None)
    if scale is not None:
        scale = scale.to(inner.embed_tokens.weight.dtype)  # which rounds it, as the library does
    # By class: a config may hold settings of another one, which its own does not read.
    divisor = config.logits_scaling if isinstance(model, GraniteForCausalLM) else None
    capped = isinstance(model, (Gemma2ForCausalLM, Gemma3ForCausalLM))
    return Ends(
        norm_device=inner.norm.weight.device,
        head_device=_device(model.lm_head),
        embedding_scale=getattr(inner, "embedding_multiplier", scale),
        logit_scale=getattr(model, "logit_scale", None if divisor is None else 1 / divisor),
        logit_softcap=config.final_logit_softcapping if capped else None,
    )


def is_plain(model: Any) -> bool:
    """True if a model of one of ``CLASSES`` has only linear layers that are computed here."""
    found = linears(model)
    return (
        all(_is_known(module) for module in found)
        and len({type(module) for module in found[:-1]}) == 1
        and all(layer.self_attn.head_dim % 2 == 0 for layer in model.model.layers)
        and all(_can_join(layer) for layer in model.model.layers)
    )


def _can_join(layer: Any) -> bool:
    """True unless projections that share an input are quantised in groups that differ."""
    shared = (query_key_value(layer.self_attn), gate_and_up(layer.mlp))
    return all(can_join(each) for each in shared if isinstance(each[0], FourBitLinear))


def linears(model: Any) -> list[Any]:
    """Return the linear layers of a model: those of its layers, and at last its head."""
    found: list[Any] = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found += [*query_key_value(attention), attention.o_proj, *gate_and_up(mlp), mlp.down_proj]
    return [*found, model.lm_head]


def query_key_value(attention: Any) -> tuple[Any, ...]:
    """Return the projections of an attention's input: one if the class has joined them itself."""
    if hasattr(attention, "qkv_proj"):
        return (attention.qkv_proj,)
    return attention.q_proj, attention.k_proj, attention.v_proj


def gate_and_up(mlp: Any) -> tuple[Any, ...]:
    """Return the projections of an MLP's input: one if the class has joined them itself."""
    if hasattr(mlp, "gate_up_proj"):
        return (mlp.gate_up_proj,)
    return mlp.gate_proj, mlp.up_proj


def _is_known(module: nn.Module) -> bool:
    """True for a layer that is computed here: with weights of torch's own, or of 8 or 4 bits."""
    own = type(module) is nn.Linear and type(module.weight) is nn.Parameter
    return own or type(module) in (EightBitLinear, FourBitLinear)


def _device(module: Any) -> torch.device:
    """Return where a linear layer lies, in whichever form its weight is."""
    stored: Tensor = module.weight if type(module) is nn.Linear else module.stored
    return stored.device


def _outputs(*projections: Any) -> int:
    return sum(each.out_features for each in projections)


def _mlp_norm(module: Any) -> AnyNorm | None:
    """Return the norm before a layer's MLP, if it has one.

    What stands behind the attention in Llama is before the MLP; where the layer has norms behind
    its MLP too, the one of that name ends the attention.
    """
    if hasattr(module, "pre_feedforward_layernorm"):
        return norm_of(module.pre_feedforward_layernorm)
    return None if _ends_with_norms(module) else _own_norm(module, "post_attention_layernorm")


def _end_norm(module: Any, name: str) -> AnyNorm | None:
    """Return the norm of what an attention or an MLP adds to the residual, if it has one."""
    return _own_norm(module, name) if _ends_with_norms(module) else None


def _ends_with_norms(module: Any) -> bool:
    return hasattr(module, "post_feedforward_layernorm")


def _own_norm(module: Any, name: str) -> AnyNorm | None:
    found = getattr(module, name, None)
    return None if found is None else norm_of(found)


def _rotation(model: Any, attention: Any, index: int) -> Rotation | None:
    """Return how a layer rotates queries and keys; None if it does not."""
    sliding = getattr(attention, "sliding_window", None) is not None
    if isinstance(model, Exaone4ForCausalLM):
        rotates = not sliding or attention.is_sliding
    elif isinstance(model, Cohere2ForCausalLM):
        rotates = sliding
    else:
        rotates = bool(getattr(attention, "use_rope", True))
    if not rotates:
        return None
    kind = model.config.layer_types[index] if isinstance(model, _ROTATED_BY_KIND) else None
    return Rotation(kind, isinstance(model, _INTERLEAVED))


def _activation(mlp: Any) -> Callable[[Tensor], Tensor]:
    """Return the activation of an MLP's gate."""
    found = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn
    return functional.silu if isinstance(found, SiLUActivation) else found
