"""Stores linear layers in the form that the device computes fastest.

On a CPU that is a layout of oneDNN's own, a copy of the weights. Elsewhere the layers that share
an input become one over the same bytes, so that the model lies in the device's memory once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.engines.eight_bit_linear import EightBitLinear, join_eight_bit
from workers.engines.four_bit_linear import FourBitLinear, join_four_bit

#: oneDNN lays weights out for a number of rows; this one is good from 1 to hundreds (measured).
_ROWS_HINT = 16


class PackedLinear(nn.Module):
    """Computes ``x @ weight.T + bias`` with the weight laid out once, at load.

    On a CPU, oneDNN's blocked layout saves it from reordering the weight in every call: 2x at one
    row in bfloat16, with the same result bit for bit. In float32 it takes the place of another
    library, which is 2 to 3 times slower at more than one row (measured on Zen 5) and rounds
    otherwise. Elsewhere the weight stays as it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Lay the weight out; weight: [out, in], bias: [out] or None."""
        super().__init__()
        self._out = weight.shape[0]
        self._packed = can_pack(weight.dtype, weight.device)
        self._bias = bias
        if self._packed and bias is not None:
            self._bias = bias.detach().clone()  # a view would keep the whole file mapped
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
            if self._packed
            else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [..., in] -> [..., out]. It stands for ``forward``: no hook is ever set here."""
        if not x.numel():  # oneDNN does not take an empty input
            return x.new_empty(*x.shape[:-1], self._out)
        if not self._packed:
            return functional.linear(x, self._weight, self._bias)
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return packed


#: Layers whose weights are quantised, each in its own form.
Quantized = EightBitLinear | FourBitLinear


def pack(*layers: nn.Linear | Quantized) -> PackedLinear | Quantized:
    """Make one layer of those that share an input, outputs side by side.

    Where weights are not packed, the layers keep theirs as views of the new layer's.
    """
    if small := [layer for layer in layers if isinstance(layer, FourBitLinear)]:
        return join_four_bit(small)
    quantized = [layer for layer in layers if isinstance(layer, EightBitLinear)]
    return join_eight_bit(quantized) if quantized else _pack(*layers)  # type: ignore[arg-type]


def _pack(*layers: nn.Linear) -> PackedLinear:
    first = layers[0].weight
    if not can_pack(first.dtype, first.device):
        join(*layers, device=first.device)
    weights, biases = _parts(layers)
    return PackedLinear(_whole(weights), None if biases is None else _whole(biases))


def join(
    *layers: nn.Linear,
    device: torch.device,
    dtype: torch.dtype | None = None,
    put: Callable[[Tensor, Tensor], object] = lambda source, out: out.copy_(source),
) -> None:
    """Move layers that share an input to a device, their weights side by side in one storage.

    dtype: the number format that they get on the way; None keeps theirs. ``put`` copies a tensor to
    another one.

    Each layer's weight (and bias) becomes a view of its rows there, so the layers still compute
    what they did, and nothing is left to free that would not fit what is allocated next. Layers
    that lie so already stay as they are.
    """
    for name, parts in zip(("weight", "bias"), _parts(layers), strict=True):
        if parts is None or (parts[0].device == device and _as_one(parts) is not None):
            continue
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        joined = torch.empty(shape, dtype=dtype or parts[0].dtype, device=device)
        rows = joined.split_with_sizes([len(part) for part in parts])
        for layer, part, own in zip(layers, parts, rows, strict=True):
            put(part, own)
            setattr(layer, name, nn.Parameter(own, requires_grad=False))


def pack_all(model: nn.Module) -> None:
    """Put packed layers in the place of a model's linear ones, whose weights are freed."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _pack(child))


def unmap(model: nn.Module) -> None:
    """Copy the tensors that were not packed: one that is left keeps its whole file mapped."""
    copies: dict[Tensor, Tensor] = {}  # tied ones stay tied
    for module in model.modules():
        if isinstance(module, EightBitLinear | FourBitLinear):
            continue
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if tensor not in copies:
                copy = tensor.detach().clone()
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[tensor] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
            setattr(module, name, copies[tensor])


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """True if weights of that kind are packed: on CPUs whose oneDNN computes the format.

    Some builds of torch are without oneDNN, which has half precision on some processors only.
    """
    built_in = torch.backends.mkldnn.is_available()
    if device.type != "cpu" or not built_in:
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32


def _parts(layers: Sequence[nn.Linear]) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return the weights of some layers, and their biases; None if they have none."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    if biases and len(biases) != len(layers):
        raise ValueError("either all of the joined layers have a bias or none")
    return weights, biases or None


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts as one tensor: without a copy, if they lie one after the other."""
    whole = _as_one(parts)
    return torch.cat(list(parts)) if whole is None else whole


def _as_one(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor whose rows the parts are, one after the other; None if they lie apart."""
    first = parts[0]
    end = first.storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or part.storage_offset() != end or not part.is_contiguous():
            return None
        end += part.numel()
    shape = (sum(map(len, parts)), *first.shape[1:])
    return first.as_strided(shape, first.stride(), first.storage_offset())
