"""Has a library quantise a text model's linear layers as they load, or read quantised ones.

Which layers stay in full precision the library says: embeddings, the output head, norms.
"""

from typing import Any

import torch
import transformers
from torch import nn

from workers.engines.quantization import FORMATS, UNPACKED, card_lack, package_lack, reader_lack
from workers.engines.torch_env import load_failed
from workers.protocol import Load

#: The part of each device's memory that the library fills when it quantises. What the rest is for
#: the ledger has counted already.
MEMORY_SHARE = 0.9

_PACKAGES = ("torchao.", "bitsandbytes.")
_BLOCK = 64  #: weights of nf4 that have one scale


def quantization_of(spec: Load, config: Any, device: torch.device) -> str | None:
    """Return how the weights of a load will be quantised: the setting, or the files' method.

    None for full precision, to which some methods' weights are unpacked as well. Raises Refused
    for what cannot be had here.
    """
    method = _method(config)
    if method is not None:
        if lack := reader_lack(method):
            raise load_failed(f"The model's weights {lack}.")
        if spec.quantization is not None:
            raise load_failed(
                f"The setting quantization is {spec.quantization}, but the model's weights come "
                f"quantised by {method}."
            )
        return None if method in UNPACKED else method
    if spec.quantization is None:
        return None
    _check(spec.quantization, spec, device)
    return spec.quantization


def library_setting(quantization: str | None, config: Any, dtype: torch.dtype) -> Any:
    """Return what the library is told about quantised weights; None: the files say it all."""
    method = _method(config)
    if method == "fp8":
        return transformers.FineGrainedFP8Config(dequantize=True)
    if method == "mxfp4":
        return transformers.Mxfp4Config(dequantize=True)
    if method is not None or quantization is None:
        return None
    if quantization == "llm_int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    # It takes a second to import, which few models need.
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kind = Int8WeightOnlyConfig if quantization == "int8" else Float8WeightOnlyConfig
    return transformers.TorchAoConfig(kind())


def check_quantized(model: Any, quantization: str | None) -> None:
    """Raise Refused for a model whose layers a library has quantised not at all, or to no use."""
    if quantization not in FORMATS:
        return
    found = [module for module in model.modules() if _is_quantized(module)]
    said = f"The setting quantization is {quantization}, but"
    if not found:
        raise load_failed(f"{said} no layer of this model is linear.")
    if quantization == "nf4" and any(_odd(module) for module in found):
        raise load_failed(f"{said} a layer's inputs are no multiple of {_BLOCK}.")


def _is_quantized(module: nn.Module) -> bool:
    """True for a layer of bitsandbytes', and for one whose weight is a tensor of torchao's."""
    weight = getattr(module, "weight", None)
    kinds = (type(module), type(weight), type(getattr(weight, "data", None)))
    return any(kind.__module__.startswith(_PACKAGES) for kind in kinds)


def _odd(module: Any) -> bool:
    return bool(module.in_features % _BLOCK)


def _check(name: str, spec: Load, device: torch.device) -> None:
    said = f"The setting quantization is {name}, but"
    if spec.adapter is not None:
        raise load_failed(f"{said} an adapter is merged into weights of full precision only.")
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if lack := card_lack(name, capability) or package_lack(name):
        raise load_failed(f"{said} {lack}.")


def _method(config: Any) -> str | None:
    """Return the method by which the files' weights are quantised, as the library has read it."""
    named = getattr(config, "quantization_config", None)
    if named is None:
        inner = getattr(config, "text_config", None)
        named = getattr(inner, "quantization_config", None)
    if named is None:
        return None
    known = named if isinstance(named, dict) else named.to_dict()
    method = known.get("quant_method")
    if method is None and (known.get("load_in_4bit") or known.get("load_in_8bit")):
        return "bitsandbytes"
    return None if method is None else str(getattr(method, "value", method))
