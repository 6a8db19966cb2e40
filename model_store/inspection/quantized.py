"""Tells how weights come quantised, and which of them a library would quantise at load."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from model_store.headers import Tensor
from model_store.inspection.facts import number
from model_store.manifest import PackedLayers

#: what each of a tensor's elements packs: of integers of 32 bits by the number of bits
_PACKED = re.compile(r"\.(?:qweight|weight_packed)$")
_NIBBLES = re.compile(r"(?:_blocks|\.blocks)$")  #: two weights of 4 bits in a byte
#: what belongs to quantised weights and is no parameter of the model
_BESIDE = re.compile(
    r"\.(?:qzeros|scales|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format|"
    r"weight_scale(?:_inv)?|weight_shape|weight_zero_point|weight_g_idx|input_scale)$"
    r"|quant_state\.|(?:_scales|\.scales)$"
)
_FOUR_BITS, _IN_WORD = 4, 8  #: bits of a number, and such numbers in an int32
_MOST_SHAPES = 256  #: of packed layers; a model has a handful
_LAYER = re.compile(r"(?:^|\.)\d+\.")
#: Families whose projections are no linear layers of torch, or whose experts the library joins.
_CONVOLUTIONS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def method_of(config: Mapping[str, Any]) -> str | None:
    """Return the method that a config names for its quantised weights; None if they are not."""
    inner = config.get("text_config")
    named = config.get("quantization_config") or (
        inner.get("quantization_config") if isinstance(inner, dict) else None
    )
    if not isinstance(named, dict):
        return None
    method = named.get("quant_method")
    if method is None and (named.get("load_in_4bit") or named.get("load_in_8bit")):
        method = "bitsandbytes"  # as old files of it tell
    return str(method) if method else None


def parameters_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Count a model's parameters, however many of them an element packs."""
    if method_of(config) is None:
        return sum(tensor.elements for tensor in tensors.values())
    bits = _bits(config)
    return sum(
        tensor.elements * _packs(name, tensor, bits)
        for name, tensor in tensors.items()
        if not _BESIDE.search(name)
    )


def linear_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the parameters and the rows of the linear layers that a library quantises at load.

    It leaves the embeddings, the output head and norms as they are, and experts that it joins.
    """
    if method_of(config) is not None or config.get("model_type") in _CONVOLUTIONS:
        return 0, 0
    found = list(_linears(tensors))
    return sum(tensor.elements for tensor in found), sum(tensor.shape[0] for tensor in found)


def _linears(tensors: Mapping[str, Tensor]) -> Iterable[Tensor]:
    for name, tensor in tensors.items():
        is_linear = len(tensor.shape) == 2 and name.endswith(".weight") and _LAYER.search(name)
        if is_linear and ".experts." not in name and "embed" not in name:
            yield tensor


def packed_layers(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[PackedLayers, ...]:
    """Count the layers of 4 bits that the text engine computes as they are, by their shape.

    Nothing if one of them is packed in another way: then another library reads them all.
    """
    method, named = method_of(config), config.get("quantization_config") or {}
    if _bits(config) != _FOUR_BITS or not is_usual(method, named):
        return ()
    found: Counter[tuple[int, int, int, int, bool]] = Counter()
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        shape = _packed_shape(tensors, name.removesuffix("qweight"), by_outputs=method == "awq")
        if shape is None or len(found) >= _MOST_SHAPES:
            return ()
        found[*shape, bool(named.get("desc_act"))] += 1
    return tuple(PackedLayers(*each, count) for each, count in found.items())


def is_usual(method: str | None, named: Mapping[str, Any]) -> bool:
    """Return whether a config names a packing of 4 bits that the text engine reads by itself."""
    if method == "awq":
        gemm = str(named.get("version", "gemm")).lower() == "gemm"
        return gemm and bool(named.get("zero_point", True))
    kind = named.get("checkpoint_format") or named.get("format") or "gptq"
    return method == "gptq" and kind in ("gptq", "gptq_v2")


def _packed_shape(
    tensors: Mapping[str, Tensor], layer: str, *, by_outputs: bool
) -> tuple[int, int, int, int] | None:
    """Return outputs, inputs, groups and the bytes of a scale; None if they do not fit together.

    by_outputs: a word holds numbers of 8 outputs, else of 8 inputs.
    """
    words, scales = tensors[f"{layer}qweight"], tensors.get(f"{layer}scales")
    if scales is None or len(words.shape) != 2 or len(scales.shape) != 2 or not scales.elements:
        return None
    ins, outs = words.shape
    ins, outs = (ins, outs * _IN_WORD) if by_outputs else (ins * _IN_WORD, outs)
    groups, fitting = scales.shape
    if words.dtype != "I32" or fitting != outs or ins % groups:
        return None
    return outs, ins, groups, scales.nbytes // scales.elements


def _bits(config: Mapping[str, Any]) -> int:
    """Return the bits of a packed weight: of AWQ and GPTQ, or of compressed-tensors' groups."""
    named = config.get("quantization_config") or {}
    bits = number(named, "bits", "w_bit")
    groups = named.get("config_groups")
    if bits is None and isinstance(groups, dict):
        weights = [each.get("weights") for each in groups.values() if isinstance(each, dict)]
        found = (number(each, "num_bits") for each in weights if isinstance(each, dict))
        bits = next(filter(None, found), None)
    return min(bits or 4, 32)


def _packs(name: str, tensor: Tensor, bits: int) -> int:
    """Return how many parameters one element of a tensor holds."""
    if tensor.dtype == "I32" and _PACKED.search(name):
        return math.floor(32 / bits)
    if tensor.dtype == "U8" and (_NIBBLES.search(name) or name.endswith(".weight")):
        return 2
    return 1
