"""Reads the weights of repositories that AWQ or GPTQ have quantised to 4 bits.

The library would have another one do it, which fixes torch's version and compiles at install. It
loads all else as it does; layers of ours stand where the files have packed weights, on the devices
that it chooses, and are filled here.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from workers.engines.four_bit_linear import FourBitLinear
from workers.engines.torch_env import load_failed
from workers.engines.weight_files import tensor_bytes, weight_files

_NAME = "bitinglip_four_bits"
_IN_WORD = 8  #: numbers of 4 bits in an int32
#: The place in AWQ's words of each of 8 outputs: what its kernels read together lies together.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(slots=True, frozen=True)
class FourBitFormat:
    """Tells how the weights of a repository are packed."""

    by_outputs: bool  #: words hold numbers of 8 outputs, as AWQ's do; else of 8 inputs
    added: int = 0  #: to each stored zero: old files of GPTQ hold it less 1


def format_of(method: str | None, known: Mapping[str, Any]) -> FourBitFormat | None:
    """Return how a config's quantised weights are packed; None if not as it is read here."""
    if known.get("bits", known.get("w_bit")) != 4:
        return None
    if method == "awq" and str(known.get("version", "gemm")).lower() == "gemm":
        return FourBitFormat(by_outputs=True) if known.get("zero_point", True) else None
    kind = known.get("checkpoint_format") or known.get("format") or "gptq"
    if method == "gptq" and kind in ("gptq", "gptq_v2"):
        return FourBitFormat(by_outputs=False, added=kind == "gptq")
    return None


@register_quantization_config(_NAME)
class FourBitConfig(QuantizationConfigMixin):  # type: ignore[misc]  # the library is not typed
    """Tells the library what loads the packed weights of a folder."""

    def __init__(
        self, folder: Path, how: FourBitFormat, placed: Callable[[int], None] = lambda _bytes: None
    ) -> None:
        """``placed`` gets the bytes of each tensor that is read here."""
        self.quant_method = _NAME
        self.folder, self.how, self.placed = folder, how, placed

    def __deepcopy__(self, _known: dict[int, Any]) -> "FourBitConfig":
        """Return the same: the library copies a model's config, and ``placed`` cannot be."""
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _NAME}


@register_quantizer(_NAME)
class FourBitQuantizer(HfQuantizer):  # type: ignore[misc]  # the library is not typed
    """Puts layers of ours into a model before the library loads it, and fills them afterwards."""

    requires_calibration = False
    is_trainable = False

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_known: Any) -> None:
        config: FourBitConfig = self.quantization_config
        with _Files(config.folder) as files:
            self._names = _put_layers(model, files)
        # The library would tell of each that it leaves them.
        ours = rf"\.({'|'.join(_PARTS)}|bias)$"
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            ours,
        }

    def _process_model_after_weight_loading(self, model: Any, **_known: Any) -> Any:
        config: FourBitConfig = self.quantization_config
        dtype = model.get_input_embeddings().weight.dtype
        with _Files(config.folder) as files, torch.no_grad():
            for path, name in self._names.items():
                _fill(model.get_submodule(path), files, name, config.how)
                model.get_submodule(path).pack(dtype)
                config.placed(files.bytes_of(name))
        return model


class _Files:
    """Reads tensors of a folder by their names; they stay in its files until they are copied."""

    def __init__(self, folder: Path) -> None:
        self._paths = weight_files(folder)
        self._bytes = tensor_bytes(folder)
        self._open = ExitStack()
        self._of: dict[str, Any] = {}

    def __enter__(self) -> "_Files":
        for path in self._paths:
            file = self._open.enter_context(safe_open(path, "pt"))
            self._of |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    @property
    def layers(self) -> set[str]:
        """Return the names of all packed layers."""
        return {name[: -len(".qweight")] for name in self._of if name.endswith(".qweight")}

    @property
    def scaled(self) -> set[str]:
        """Return the names of all that has scales."""
        return {name[: -len(".scales")] for name in self._of if name.endswith(".scales")}

    def shape(self, name: str) -> list[int]:
        self._check(name)
        found: list[int] = self._of[name].get_slice(name).get_shape()
        return found

    def read(self, name: str) -> Tensor:
        self._check(name)
        found: Tensor = self._of[name].get_tensor(name)
        return found

    def dtype(self, name: str) -> torch.dtype:
        self._check(name)
        found: torch.dtype = self._of[name].get_slice(name)[:0].dtype
        return found

    def has(self, name: str) -> bool:
        return name in self._of

    def bytes_of(self, layer: str) -> int:
        return sum(self._bytes.get(f"{layer}.{part}", 0) for part in _PARTS)

    def _check(self, name: str) -> None:
        if name not in self._of:
            raise load_failed(f"The quantised weights lack {name[:120]}.")


def _put_layers(model: Any, files: _Files) -> dict[str, str]:
    """Put empty layers where the files have packed ones; return their names there by paths."""
    left = files.layers
    if lone := files.scaled - left:  # activations that are scaled, as some families' are by AWQ
        raise load_failed(f"The scales of {min(lone)[:120]} are of no packed weights.")
    found: dict[str, str] = {}
    for path, module in list(model.named_modules()):
        name = next((each for each in (path, path.removeprefix("model.")) if each in left), None)
        if type(module) is not nn.Linear or name is None:
            continue
        if module is model.get_output_embeddings():
            raise load_failed("The model's output head is quantised, which is not computed here.")
        left.discard(name)
        found[path] = name
        model.set_submodule(path, _empty(module, files, name))
    if left:
        raise load_failed(f"The model has no linear layer for the quantised {min(left)[:120]}.")
    return found


def _empty(layer: nn.Linear, files: _Files, name: str) -> FourBitLinear:
    """Return a layer without weights, whose buffers the library puts on a device."""
    outs, ins = layer.weight.shape
    scales = files.shape(f"{name}.scales")
    groups = scales[0] if scales else 0
    if len(scales) != 2 or scales[1] != outs or not groups or ins % (2 * groups):
        raise load_failed(f"The scales of {name[:120]} do not fit its layer.")
    with torch.device("meta"):
        order = None
        if files.has(f"{name}.g_idx"):
            order = torch.empty(ins, dtype=torch.int64)
        bias = None if layer.bias is None else torch.empty_like(layer.bias)
        return FourBitLinear(
            torch.empty(outs, ins // 2, dtype=torch.uint8),
            torch.empty(groups, outs, dtype=files.dtype(f"{name}.scales")),
            torch.empty(groups, outs, dtype=torch.uint8),
            bias,
            order,
        )


def _fill(layer: FourBitLinear, files: _Files, name: str, how: FourBitFormat) -> None:
    """Read a layer's weights to where its buffers are."""
    device = layer.stored.device
    outs, ins = layer.out_features, layer.in_features
    groups = len(layer.zero)
    words = [ins, outs // _IN_WORD] if how.by_outputs else [ins // _IN_WORD, outs]
    wanted = {"qweight": words, "qzeros": [groups, outs // _IN_WORD]}
    if layer.order is not None:
        wanted["g_idx"] = [ins]
    for part, shape in wanted.items():
        fits = files.shape(f"{name}.{part}") == shape
        whole = files.dtype(f"{name}.{part}") == torch.int32
        if not (fits and whole) or outs % _IN_WORD or ins % _IN_WORD:
            raise load_failed(f"The {part} of {name[:120]} do not fit its layer.")
    packed = files.read(f"{name}.qweight").to(device)
    numbers = (  # [in, out]
        _unpack(packed, _AWQ_PLACES) if how.by_outputs else _unpack(packed.t(), range(_IN_WORD)).t()
    )
    zeros = _unpack(
        files.read(f"{name}.qzeros").to(device), _AWQ_PLACES if how.by_outputs else range(_IN_WORD)
    )
    if layer.order is not None:
        layer.order = _order(files.read(f"{name}.g_idx").to(device), groups)
        if layer.order is not None:
            numbers = numbers.index_select(0, layer.order)
    low, high = numbers.t().reshape(outs, groups, 2, -1).unbind(2)
    if layer.bias is None and files.has(f"{name}.bias") and files.read(f"{name}.bias").any():
        raise load_failed(f"The model has no place for the bias of {name[:120]}.")
    layer.stored.copy_((low | (high << 4)).flatten(1))
    layer.zero.copy_(zeros + how.added)
    layer.scale.copy_(files.read(f"{name}.scales"))


def _unpack(words: Tensor, places: Any) -> Tensor:
    """Return the numbers of 4 bits in int32 words, in the last dimension, each by its place."""
    shifts = torch.tensor([4 * place for place in places], device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8).flatten(-2)


def _order(group_of: Tensor, groups: int) -> Tensor | None:
    """Return in which order inputs are read, so that those of a group are together; None: they are.

    group_of: [in], the group of each input.
    """
    size = len(group_of) // groups
    if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
        raise load_failed("The groups of the quantised weights are not those of their scales.")
    counts = torch.bincount(group_of.long(), minlength=groups)
    if bool((counts != size).any()):
        raise load_failed("The groups of the quantised weights are not of one size.")
    order = torch.argsort(group_of.long(), stable=True)
    return None if torch.equal(order, torch.arange(len(order), device=order.device)) else order
