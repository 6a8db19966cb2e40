"""Quantises a text model's linear layers as they load, and has libraries read quantised files.

To 8 bits it is done here: a scale a row, the numbers that torchao's weight-only formats have. That
library itself is not used for it: while it is installed, every import of transformers imports it,
which takes as long as torch, and its layers widen a weight in each call.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from workers.engines.eight_bit_linear import EightBitLinear
from workers.engines.quantization import FORMATS, UNPACKED, card_lack, package_lack, reader_lack
from workers.engines.text.four_bit_files import FourBitConfig, FourBitFormat, format_of
from workers.engines.torch_env import load_failed
from workers.engines.upload import Upload
from workers.protocol import Load

#: The part of each device's memory that the library fills when it quantises. What the rest is for
#: the ledger has counted already.
MEMORY_SHARE = 0.9
EIGHT_BITS: Mapping[str, torch.dtype] = MappingProxyType(
    {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
)

_BLOCK = 64  #: weights of nf4 that have one scale
#: Weights that are quantised at once, in float32: on a CPU so few that its caches hold them, which
#: takes a tenth of the time (measured, Zen 5).
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}


def quantization_of(spec: Load, config: Any, device: torch.device, *, spread: bool) -> str | None:
    """Return how the weights of a load will be quantised: the setting, or the files' method.

    None for full precision, to which some methods' weights are unpacked as well. Raises Refused
    for what cannot be had here.
    """
    method = _method(config)
    if method is not None:
        if four_bits(config) is None and (lack := reader_lack(method)):
            raise load_failed(f"The model's weights {lack}.")
        if spec.quantization is not None:
            raise load_failed(
                f"The setting quantization is {spec.quantization}, but the model's weights come "
                f"quantised by {method}."
            )
        if spec.adapter is not None and four_bits(config) is not None:
            raise load_failed(
                f"The model's weights are quantised by {method}, and an adapter is merged into "
                "weights of full precision only."
            )
        return None if method in UNPACKED else method
    if spec.quantization is None:
        return None
    _check(spec.quantization, spec, device, spread=spread)
    return spec.quantization


def four_bits(config: Any) -> FourBitFormat | None:
    """Return how the files' weights are packed, if they are as AWQ and GPTQ do it to 4 bits."""
    return format_of(_method(config), _settings(config))


def library_setting(
    quantization: str | None,
    config: Any,
    dtype: torch.dtype,
    folder: Path,
    placed: Callable[[int], None],
) -> Any:
    """Return what the library is told about quantised weights; None: the files say it all.

    Of weights that are read here the config must not tell it. ``placed`` gets the bytes of those.
    """
    how = four_bits(config)
    if how is not None:
        for each in (config, config.get_text_config(decoder=True)):
            if hasattr(each, "quantization_config"):
                del each.quantization_config
        return FourBitConfig(folder, how, placed)
    method = _method(config)
    if method == "fp8":
        return transformers.FineGrainedFP8Config(dequantize=True)
    if method == "mxfp4":
        return transformers.Mxfp4Config(dequantize=True)
    if quantization == "llm_int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return None


def joins_experts(config: Any) -> bool:
    """Return whether the library makes one tensor of a layer's experts, as copies of their weights.

    Such copies belong on a card: in RAM they take as much as the model.
    """
    return any(
        isinstance(operation, MergeModulelist)
        for change in get_checkpoint_conversion_mapping(config.model_type) or ()
        if isinstance(change, WeightConverter)
        for operation in change.operations
    )


def quantize(
    model: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    placed: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Put layers of 8 bits, on the device, in the place of a model's linear ones.

    The weights may be mapped from their files; they are read and freed one by one. Embeddings, the
    output head, and what the library keeps in float32 stay as they are. ``placed`` gets the bytes
    of each in its file. Raises Refused if no layer is left.
    """
    upload = Upload(device)
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    found = 0
    for path, module in list(model.named_modules()):
        for own, child in list(module.named_children()):
            full = f"{path}.{own}" if path else own
            if type(child) is nn.Linear and should_convert_module(full, kept):
                setattr(module, own, _eight_bits(child, EIGHT_BITS[name], upload, device, dtype))
                placed(child.weight.nbytes)
                found += 1
    upload.finish()
    if not found:
        raise _no_layer(name)


def eight_bits(weight: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise rows, each by its largest number. [rows, in] -> the same in 8 bits, [rows] scales"""
    exact = weight.float()
    is_int = stored is torch.int8
    most = 127.5 if is_int else torch.finfo(stored).max
    scale = exact.abs().amax(1).clamp(min=torch.finfo(torch.float32).smallest_normal) / most
    exact = exact / scale[:, None]
    exact = exact.round().clamp(-128, 127) if is_int else exact.clamp(-most, most)
    return exact.to(stored), scale


def check_quantized(model: Any, quantization: str | None) -> None:
    """Raise Refused for a model whose layers a library has quantised not at all, or to no use."""
    if quantization is None or quantization not in FORMATS or quantization in EIGHT_BITS:
        return
    found = [each for each in model.modules() if type(each).__module__.startswith("bitsandbytes.")]
    if not found:
        raise _no_layer(quantization)
    if quantization == "nf4" and any(each.in_features % _BLOCK for each in found):
        raise load_failed(
            f"The setting quantization is nf4, but a layer's inputs are no multiple of {_BLOCK}."
        )


def _eight_bits(
    layer: nn.Linear,
    stored: torch.dtype,
    upload: Upload,
    device: torch.device,
    dtype: torch.dtype,
) -> EightBitLinear:
    """Return a layer in 8 bits on the device; its rows are quantised there, some at a time."""
    weight = layer.weight.detach()
    small = torch.empty(weight.shape, dtype=stored, device=device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=device)
    step = max(1, _CHUNK.get(device.type, 1 << 24) // weight.shape[1])
    for start in range(0, len(weight), step):
        source = weight[start : start + step]
        part = torch.empty(source.shape, dtype=dtype, device=device)
        upload.put(source, part)
        upload.join()
        small[start : start + step], scale[start : start + step] = eight_bits(part, stored)
    bias = None if layer.bias is None else layer.bias.detach().to(device, dtype).clone()
    return EightBitLinear(small, scale, bias)


def _check(name: str, spec: Load, device: torch.device, *, spread: bool) -> None:
    said = f"The setting quantization is {name}, but"
    if spec.adapter is not None:
        raise load_failed(f"{said} an adapter is merged into weights of full precision only.")
    if spread and name in EIGHT_BITS:
        raise load_failed(f"{said} a model over several devices is not quantised to it.")
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if lack := card_lack(name, capability) or package_lack(name):
        raise load_failed(f"{said} {lack}.")


def _no_layer(name: str) -> Exception:
    return load_failed(f"The setting quantization is {name}, but no layer of this model is linear.")


def _method(config: Any) -> str | None:
    """Return the method by which the files' weights are quantised, as the library has read it."""
    known = _settings(config)
    method = known.get("quant_method")
    if method is None and (known.get("load_in_4bit") or known.get("load_in_8bit")):
        return "bitsandbytes"
    return None if method is None else str(getattr(method, "value", method))


def _settings(config: Any) -> Mapping[str, Any]:
    """Return what a config tells of the files' quantised weights; nothing if they are not."""
    named = getattr(config, "quantization_config", None)
    if named is None:
        inner = getattr(config, "text_config", None)
        named = getattr(inner, "quantization_config", None)
    if named is None:
        return {}
    known: Mapping[str, Any] = named if isinstance(named, dict) else named.to_dict()
    return known
