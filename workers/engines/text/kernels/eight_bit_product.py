"""Multiplies few rows with a weight of 8 bits as it is stored, so that each byte is read once.

A step of few rows takes as long as it takes to read the weights: at 8 bits half the time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.text.kernels import MOST_ROWS

_BLOCK_K = 128
#: outputs of a program: fewer where a weight would not keep all parts of a card busy
_BLOCK_N, _FEWER_N, _FEW = 32, 16, 8192


def eight_bit_product(x: Tensor, stored: Tensor, scale: Tensor) -> Tensor:
    """Compute ``(x @ stored.T) * scale``.

    x: [rows, in] of at most MOST_ROWS; stored: [out, in] int8 or float8; scale: [out] float32.
    -> [rows, out] in the format of x
    """
    rows, width = x.shape
    outs = stored.shape[0]
    y = x.new_empty(rows, outs)
    block_n = _FEWER_N if outs <= _FEW else _BLOCK_N
    with torch.cuda.device_of(x):  # Triton launches on the current card, whatever it is given
        _product[(triton.cdiv(outs, block_n),)](
            x.contiguous(),
            stored,
            scale,
            y,
            rows,
            outs,
            width,
            MOST_ROWS,
            block_n,
            _BLOCK_K,
            num_stages=4,
        )
    return y


@triton.jit(do_not_specialize=["rows"])  # which would be compiled for one row and for 16 apart
def _product(
    x_ptr,
    stored_ptr,
    scale_ptr,
    y_ptr,
    rows,
    outs,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    at = n.to(tl.int64) * width
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        inside = start + k < width
        x = tl.load(
            x_ptr + m[:, None] * width + start + k[None, :],
            mask=(m[:, None] < rows) & inside[None, :],
            other=0.0,
        )
        part = tl.load(
            stored_ptr + at[None, :] + start + k[:, None],
            mask=(n[None, :] < outs) & inside[:, None],
            other=0.0,
        )
        total = tl.dot(x, part.to(x.dtype), total, input_precision="ieee")
    scale = tl.load(scale_ptr + n, mask=n < outs, other=0.0)
    kept = (m[:, None] < rows) & (n[None, :] < outs)
    y = total * scale[None, :]
    tl.store(y_ptr + m[:, None] * outs + n[None, :], y.to(y_ptr.dtype.element_ty), mask=kept)
