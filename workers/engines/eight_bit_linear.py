"""Computes linear layers whose weights have 8 bits and one scale a row, as torchao makes them.

Its own layers widen the whole weight in each call, which takes longer than the product with it: on
a CPU ten times (4096 x 4096, one row, Zen 5), and on a card that reads a weight once and writes and
reads it again in twice the bytes. Here the product of few rows reads the weight as it is stored.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.engines.text.kernels import MOST_ROWS, unusable

#: Rows up to which the product that reads int8 is faster on a CPU than a widened weight (measured).
_FEW_ROWS = 48
_TORCHAO = ("Int8Tensor", "Float8Tensor")


class EightBitLinear(nn.Module):
    """Computes ``x @ (weight * scale).T + bias``, rounded as torchao does: scaled at the end."""

    def __init__(self, stored: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """Take stored: [out, in] int8 or float8; scale: [out] float32; bias: [out] or None."""
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.stored, self.scale, self.bias = stored, scale, bias
        self._has_kernel: bool | None = None  #: not known yet
        self._ones: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """Return the weight in full precision, for code that looks at a layer's."""
        return self.stored.float() * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., in] -> [..., out]."""
        flat = x.reshape(-1, self.in_features)
        if flat.device.type == "cpu" and self._is_for_cpu_product(flat):
            y = self._on_cpu(flat)
        elif self._is_for_kernel(flat):
            # Here, since Triton is not on every machine and takes a second to import.
            from workers.engines.text.kernels.eight_bit_product import eight_bit_product

            y = eight_bit_product(flat, self.stored, self.scale)
        else:
            y = self._widened(flat)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def rows(self, start: int, end: int) -> "EightBitLinear":
        """Return the layer of some of the outputs, over the same bytes."""
        bias = None if self.bias is None else self.bias[start:end]
        return EightBitLinear(self.stored[start:end], self.scale[start:end], bias)

    def _widened(self, x: Tensor) -> Tensor:
        weight = self.stored.to(x.dtype)
        if x.dtype is torch.float16:  # sums that are not scaled yet soon exceed its range
            return functional.linear(x, weight.mul_(self.scale[:, None]))
        return self._scaled(functional.linear(x, weight))

    def _is_for_cpu_product(self, x: Tensor) -> bool:
        few = self.stored.dtype is torch.int8 and len(x) <= _FEW_ROWS
        return few and x.dtype is not torch.float16  # which it would round to before it is scaled

    def _on_cpu(self, x: Tensor) -> Tensor:
        if self._ones is None or self._ones.dtype != x.dtype:
            # The product takes scales in the activations' format, which would round them.
            self._ones = torch.ones(self.out_features, dtype=x.dtype)
        return self._scaled(torch._weight_int8pack_mm(x.contiguous(), self.stored, self._ones))

    def _scaled(self, y: Tensor) -> Tensor:
        return (y * self.scale).to(y.dtype)

    def _is_for_kernel(self, x: Tensor) -> bool:
        if self._has_kernel is None:
            small = self.stored.dtype.is_floating_point
            lack = unusable(x.device, x.dtype, float8=small)
            self._has_kernel = lack is None and x.device.type == "cuda"
        return self._has_kernel and len(x) <= MOST_ROWS


def join_eight_bit(layers: Sequence[EightBitLinear]) -> EightBitLinear:
    """Make one layer of those that share an input, outputs side by side.

    The layers keep theirs as views of the new one's, so the weights are held once.
    """
    if len(layers) == 1:
        return layers[0]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases and len(biases) != len(layers):
        raise ValueError("either all of the joined layers have a bias or none")
    joined = EightBitLinear(
        torch.cat([layer.stored for layer in layers]),
        torch.cat([layer.scale for layer in layers]),
        torch.cat(biases) if biases else None,
    )
    start = 0
    for layer in layers:
        own = joined.rows(start, start := start + layer.out_features)
        layer.stored, layer.scale, layer.bias = own.stored, own.scale, own.bias
    return joined


def take_over(model: nn.Module) -> None:
    """Put layers of ours in the place of those whose weights torchao has quantised."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and (parts := _parts(child.weight)):
                bias = None if child.bias is None else child.bias.detach()
                setattr(module, name, EightBitLinear(*parts, bias))


def _parts(weight: Any) -> tuple[Tensor, Tensor] | None:
    """Return a weight of torchao's as it is stored, and a scale for each row; None if it is none
    that we compute."""
    if type(weight).__name__ not in _TORCHAO:
        return None
    stored, scale, zero = weight.qdata, weight.scale, getattr(weight, "zero_point", None)
    changes = (weight.act_quant_kwargs, getattr(weight, "act_pre_scale", None))
    changed = any(each is not None for each in changes)
    by_row = stored.dim() == 2 and scale.numel() == stored.shape[0]
    if changed or not by_row or (zero is not None and bool(zero.any())):
        return None
    return stored.contiguous(), scale.reshape(-1).float()
