"""Computes linear layers whose weights have 4 bits, as AWQ and GPTQ make them: each group of inputs
has a scale and a zero.

The weights stay so in memory. On a card the product of few rows reads them as they are stored; on a
CPU torch has a product for bfloat16; all others widen some outputs' weights at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.engines.quantization import has_cpu_layout
from workers.engines.text.kernels import MOST_FOUR_BIT_ROWS, MOST_ROWS, unusable

#: Weights that are widened at once: in float32 they take 64 MiB.
_CHUNK = 1 << 24


class FourBitLinear(nn.Module):
    """Computes ``x @ ((stored - zero) * scale).T + bias``.

    Byte j of a group has the weight of its input j in the low bits, and that of input j + half a
    group in the high ones: so what is read together has one scale, and no numbers change places.
    """

    stored: Tensor  #: [out, in / 2] uint8; in the CPU's layout, once it is ``packed``
    scale: Tensor  #: [groups, out], as in the files; empty once it is ``packed``
    zero: Tensor  #: [groups, out] uint8; once it is ``packed`` [groups, out, 2], with the scales
    order: Tensor | None  #: [in] int64, the input that is read as the n-th; None: as they come
    bias: Tensor | None

    def __init__(
        self,
        stored: Tensor,
        scale: Tensor,
        zero: Tensor,
        bias: Tensor | None,
        order: Tensor | None = None,
        *,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = len(stored), 2 * stored.shape[1]
        self.group = self.in_features // len(zero)
        self.packed = packed
        # Of no state dict: the library would look for them in the files.
        self.register_buffer("stored", stored, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero", zero, persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._has_kernel: bool | None = None  #: not known yet

    def pack(self, dtype: torch.dtype) -> None:
        """Take the layout of the CPU's product, where there is one for the layer and a format.

        It is of the same size; its zeros and scales have the format of the activations.
        """
        fits = has_cpu_layout(self.out_features, self.group)
        if self.packed or self.stored.device.type != "cpu" or dtype != torch.bfloat16 or not fits:
            return
        numbers = self._numbers(0, self.out_features).flatten(1).int()
        self.stored = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        scale = self.scale.float()
        shift = scale * (8 - self.zero.float())  # which the product adds to (number - 8) * scale
        self.zero = torch.stack((scale, shift), -1).to(dtype)
        self.scale = self.scale.new_empty(0)
        self.packed = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., in] -> [..., out]."""
        flat = x.reshape(-1, self.in_features)
        if self.order is not None:
            flat = flat.index_select(1, self.order)
        if self.packed:
            y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                flat.contiguous(),
                self.stored,
                self.group,
                self.zero.contiguous(),  # a part of a joined layer's lies apart
            )
        elif self._is_for_kernel(flat):
            # Here, since Triton is not on every machine and takes a second to import.
            from workers.engines.text.kernels.four_bit_product import four_bit_product

            y = four_bit_product(flat, self.stored, self.scale, self.zero)
        else:
            y = self._widened(flat)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def widened(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Return the weights of some outputs in full precision, inputs in the order of the files'
        groups. Not for a layer that is packed."""
        widened = self._numbers(start, end).float()
        zero, scale = (each[:, start:end].t()[:, :, None] for each in (self.zero, self.scale))
        widened.sub_(zero).mul_(scale)
        return widened.to(dtype).flatten(1)

    def rows(self, start: int, end: int) -> "FourBitLinear":
        """Return the layer of some of the outputs, over the same bytes."""
        scale = self.scale if self.packed else self.scale[:, start:end]
        bias = None if self.bias is None else self.bias[start:end]
        zero = self.zero[:, start:end]
        return FourBitLinear(
            self.stored[start:end], scale, zero, bias, self.order, packed=self.packed
        )

    def _numbers(self, start: int, end: int) -> Tensor:
        """Return the weights of some outputs as they are stored, [outputs, groups, of a group]."""
        pairs = self.stored[start:end].view(end - start, len(self.zero), self.group // 2)
        return torch.cat((pairs & 15, pairs >> 4), -1)

    def _widened(self, x: Tensor) -> Tensor:
        step = max(1, _CHUNK // self.in_features)
        if self.out_features <= step:
            return functional.linear(x, self.widened(0, self.out_features, x.dtype))
        y = x.new_empty(len(x), self.out_features)
        for start in range(0, self.out_features, step):
            end = min(start + step, self.out_features)
            y[:, start:end] = functional.linear(x, self.widened(start, end, x.dtype))
        return y

    def _is_for_kernel(self, x: Tensor) -> bool:
        if self._has_kernel is None:
            lack = unusable(x.device, x.dtype)
            fits = self.group % 32 == 0  # what tensor cores multiply is 16 wide, two in a byte
            self._has_kernel = lack is None and x.device.type == "cuda" and fits
        # In float32 tensor cores have no part in it, and more rows do not fit into what a program
        # has on smaller cards (99 KiB).
        most = MOST_ROWS if x.dtype is torch.float32 else MOST_FOUR_BIT_ROWS
        return self._has_kernel and len(x) <= most


def can_join(layers: Sequence[FourBitLinear]) -> bool:
    """True if layers that share an input can be one: they read it alike and lie alike."""
    first = layers[0]
    return all(
        (each.group, each.packed, each.scale.dtype)
        == (first.group, first.packed, first.scale.dtype)
        and (each.bias is None) == (first.bias is None)
        and _same(each.order, first.order)
        for each in layers
    )


def join_four_bit(layers: Sequence[FourBitLinear]) -> FourBitLinear:
    """Make one layer of those for which :func:`can_join` holds, outputs side by side.

    The layers keep theirs as views of the new one's, so the weights are held once.
    """
    first = layers[0]
    if len(layers) == 1:
        return first
    biases = [layer.bias for layer in layers if layer.bias is not None]
    joined = FourBitLinear(
        torch.cat([layer.stored for layer in layers]),
        first.scale if first.packed else torch.cat([layer.scale for layer in layers], 1),
        torch.cat([layer.zero for layer in layers], 1),
        torch.cat(biases) if biases else None,
        first.order,
        packed=first.packed,
    )
    start = 0
    for layer in layers:
        own = joined.rows(start, start := start + layer.out_features)
        layer.stored, layer.scale, layer.zero = own.stored, own.scale, own.zero
        layer.order, layer.bias = own.order, own.bias
    return joined


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
