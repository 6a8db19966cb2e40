"""Linear layers in the form that the device computes fastest."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

#: oneDNN lays weights out for a number of rows; this one is good from 1 to hundreds (measured).
_ROWS_HINT = 16


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` with the weight laid out once, at load.

    On a CPU, oneDNN's blocked layout saves it from reordering the weight in every call: 2x at one
    row in bfloat16, with the same result bit for bit. In float32 it takes the place of another
    library, which is 2 to 3 times slower at more than one row (measured on Zen 5) and rounds
    otherwise. Elsewhere the weight stays as it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: [out, in], bias: [out] or None."""
        super().__init__()
        # a copy, because a view would keep the whole file mapped
        self._bias = None if bias is None else bias.detach().clone()
        self._out = weight.shape[0]
        self._packed = _can_pack(weight)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
            if self._packed
            else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]; in the place of ``forward``, as no hook is ever set here."""
        if not x.numel():  # oneDNN does not take an empty input
            return x.new_empty(*x.shape[:-1], self._out)
        if not self._packed:
            return functional.linear(x, self._weight, self._bias)
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return packed


def pack(*layers: nn.Linear) -> PackedLinear:
    """One layer that computes those that share an input, outputs side by side."""
    weight = _join([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases and len(biases) != len(layers):
        raise ValueError("either all of the joined layers have a bias or none")
    return PackedLinear(weight, _join(biases) if biases else None)


def pack_all(model: nn.Module) -> None:
    """Put packed layers in the place of a model's linear ones, whose weights are let go."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, pack(child))


def unmap(model: nn.Module) -> None:
    """Copy what was not packed: as long as one tensor is where its file is mapped, all of it is."""
    copies: dict[Tensor, Tensor] = {}  # tied ones stay tied
    for module in model.modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if tensor not in copies:
                copy = tensor.detach().clone()
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[tensor] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
            setattr(module, name, copies[tensor])


def _can_pack(weight: Tensor) -> bool:
    """Some builds of torch are without oneDNN, which has half precision on some processors only."""
    # torch has no types for the question
    built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or not built_in:
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return weight.dtype is torch.float32


def _join(tensors: Sequence[Tensor]) -> Tensor:
    data = [tensor.detach() for tensor in tensors]
    return data[0] if len(data) == 1 else torch.cat(data)
