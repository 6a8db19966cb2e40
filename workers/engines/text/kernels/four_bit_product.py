"""Multiplies few rows with a weight of 4 bits as it is stored, so that each byte is read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.text.kernels import MOST_FOUR_BIT_ROWS

_FEW_ROWS = 16  #: the least that tensor cores multiply; one kernel for these, one for more
_MOST_PAIRS = 64  #: bytes of an output that are read at once
#: outputs of a program: fewer where a weight would not keep all parts of a card busy
_BLOCK_N, _FEWER_N, _FEW = 32, 16, 8192


def four_bit_product(x: Tensor, stored: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Compute ``x @ ((stored - zero) * scale).T``.

    x: [rows, in] of at most MOST_FOUR_BIT_ROWS; stored: [out, in / 2] uint8, two halves of a group
    in its bytes; scale: [groups, out]; zero: [groups, out] uint8; a group is a multiple of 32.
    Rows of scale and zero may lie apart. -> [rows, out] in the format of x
    """
    rows, width = x.shape
    outs, half = stored.shape[0], width // len(zero) // 2
    y = x.new_empty(rows, outs)
    block_n = _FEWER_N if outs <= _FEW else _BLOCK_N
    pairs = min(half & -half, _MOST_PAIRS)  # the largest power of two that divides it
    with torch.cuda.device_of(x):  # Triton launches on the current card, whatever it is given
        _product[(triton.cdiv(outs, block_n),)](
            x.contiguous(),
            stored,
            scale,
            zero,
            y,
            rows,
            outs,
            width,
            len(zero),
            scale.stride(0),
            zero.stride(0),
            _FEW_ROWS if rows <= _FEW_ROWS else MOST_FOUR_BIT_ROWS,
            block_n,
            half,
            pairs,
            num_stages=4,
        )
    return y


# Each of these would have kernels of its own where it is 1 or a multiple of 16.
@triton.jit(do_not_specialize=["rows", "groups"])
def _product(
    x_ptr,
    stored_ptr,
    scale_ptr,
    zero_ptr,
    y_ptr,
    rows,
    outs,
    width,
    groups,
    scale_stride,
    zero_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, PAIRS)
    is_row, is_out = m[:, None] < rows, n < outs
    at = n.to(tl.int64) * (width // 2)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for group in range(groups):
        # Numbers of 5 bits with a sign: every format of x has them exactly.
        zero = tl.load(zero_ptr + group * zero_stride + n, mask=is_out, other=0).to(tl.int32)
        scale = tl.load(scale_ptr + group * scale_stride + n, mask=is_out, other=0.0)
        part = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for start in range(0, HALF, PAIRS):
            place = x_ptr + m[:, None] * width + group * 2 * HALF + start + k[None, :]
            low = tl.load(place, mask=is_row, other=0.0)
            high = tl.load(place + HALF, mask=is_row, other=0.0)
            pairs = tl.load(
                stored_ptr + at[None, :] + group * HALF + start + k[:, None],
                mask=is_out[None, :],
                other=0,
            ).to(tl.int32)
            lows, highs = (pairs & 15) - zero[None, :], (pairs >> 4) - zero[None, :]
            part = tl.dot(low, lows.to(low.dtype), part, input_precision="ieee")
            part = tl.dot(high, highs.to(high.dtype), part, input_precision="ieee")
        total += part * scale.to(tl.float32)[None, :]
    kept = is_row & is_out[None, :]
    tl.store(y_ptr + m[:, None] * outs + n[None, :], total.to(y_ptr.dtype.element_ty), mask=kept)
