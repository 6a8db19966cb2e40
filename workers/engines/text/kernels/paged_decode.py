"""Computes attention of single tokens over the paged cache as it lies, without a copy of it.

A row's keys are split into parts of at least 256 positions, which run side by side; a second kernel
joins their results. How they are split depends on the row's own length only, and the join goes from
part to part, so a row has the same result, bit for bit, whatever runs beside it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engines.text.kernels import CHUNK, GRIDS

_MOST_POSITIONS = 64  #: that are read together
#: bytes of keys that are read together, and of values: twice that, and what is computed of them,
#: must fit into the 99 KiB that a program has on cards of the capabilities 8.6, 8.9 and 12.0
_MOST_BYTES = 32 << 10
_LEAST = 16  #: rows and columns of a product of tensor cores


def paged_decode(
    query: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    longest: int,
    block_size: int,
    kv_heads: int,
    value_dim: int,
    window: int | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute the attention of one token of each row.

    query: [rows, heads, key_dim]; pages: [positions, width], of each position all keys, then all
    values, in the query's format or float8; table: [rows, blocks] int32; lengths: [rows] int32,
    with the token itself; ``longest`` is the largest of them; sinks: [heads].
    -> [rows, heads * value_dim]
    """
    rows, heads, key_dim = query.shape
    if query.stride(1) != key_dim or query.stride(2) != 1:
        query = query.contiguous()
    group = heads // kv_heads
    grid = next(each for each in GRIDS if each * CHUNK >= longest or each == GRIDS[-1])
    parts = query.new_empty(rows, kv_heads, grid, group, value_dim, dtype=torch.float32)
    sums = query.new_empty(rows, kv_heads, grid, group, dtype=torch.float32)
    seen = query.new_empty(rows, heads * value_dim)
    values = _power_of_two(value_dim)
    with torch.cuda.device_of(query):  # Triton launches on the current card
        _attend_part[rows, kv_heads, grid](
            query,
            pages,
            table,
            lengths,
            parts,
            sums,
            scaling,
            softcap or 0.0,
            query.stride(0),
            block_size * pages.stride(0),
            pages.stride(0),
            kv_heads * key_dim,
            table.stride(0),
            KV_HEADS=kv_heads,
            GROUP=group,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            BLOCK_SIZE=block_size,
            WINDOW=window or 0,
            SOFTCAP=softcap is not None,
            SPLITS=GRIDS[-1],
            GRID_SPLITS=grid,
            CHUNK=CHUNK,
            BLOCK_N=positions_at_once(max(key_dim, value_dim), query.element_size()),
            BLOCK_G=_power_of_two(group),
            KD=_power_of_two(key_dim),
            VD=values,
            num_warps=4,
            num_stages=2,
        )
        _join_parts[rows, heads](
            parts,
            sums,
            sums if sinks is None else sinks,
            seen,
            seen.stride(0),
            SINKS=sinks is not None,
            HEADS=heads,
            GROUP=group,
            VALUE_DIM=value_dim,
            GRID_SPLITS=grid,
            VD=values,
            num_warps=2,
        )
    return seen


def positions_at_once(dim: int, size: int) -> int:
    """Return how many positions a program reads together, of heads of so many numbers.

    ``size``: the bytes of each as it is computed. A part has a multiple of them.
    """
    fitting = _MOST_BYTES // (_power_of_two(dim) * size)
    return max(_LEAST, min(_MOST_POSITIONS, fitting))


def _power_of_two(size: int) -> int:
    """Return the power of two that holds a size, as large as tensor cores take at least."""
    return max(_LEAST, 1 << (size - 1).bit_length())


# Triton recompiles a kernel for numbers of other divisors, unless it is told not to: the table's
# width is another one every few tokens.
@triton.jit(do_not_specialize=["table_stride"])
def _attend_part(
    query_ptr,
    pages_ptr,
    table_ptr,
    lengths_ptr,
    parts_ptr,
    sums_ptr,
    scaling,
    softcap,
    query_stride,
    block_stride,
    position_stride,
    value_offset,
    table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr,
    GRID_SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    KD: tl.constexpr,
    VD: tl.constexpr,
):
    """Compute one part of a row for the query heads of one key head.

    The grid is (rows, key heads, parts). Written are the part's result, [row, key head, part, query
    head of the group, value], and the logarithm of its weights' sum; of an empty part only the
    latter, -inf.
    """
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    g = tl.arange(0, BLOCK_G)
    out = ((row * KV_HEADS + head) * GRID_SPLITS + part) * GROUP + g
    length = tl.load(lengths_ptr + row)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    chunk = tl.maximum(tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK_N) * BLOCK_N, CHUNK)
    low = first + part * chunk
    high = tl.minimum(low + chunk, length)
    if low >= high:
        tl.store(sums_ptr + out, float("-inf"), mask=g < GROUP)
        return
    kd, vd = tl.arange(0, KD), tl.arange(0, VD)
    query = tl.load(
        query_ptr + row * query_stride + (head * GROUP + g)[:, None] * KEY_DIM + kd[None, :],
        mask=(g < GROUP)[:, None] & (kd < KEY_DIM)[None, :],
        other=0.0,
    )
    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    seen = tl.zeros([BLOCK_G, VD], tl.float32)
    for start in range(low, high, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        there = n < high
        block = tl.load(table_ptr + row * table_stride + n // BLOCK_SIZE, mask=there, other=0)
        at = block.to(tl.int64) * block_stride + (n % BLOCK_SIZE) * position_stride
        keys = tl.load(
            pages_ptr + at[None, :] + head * KEY_DIM + kd[:, None],
            mask=there[None, :] & (kd < KEY_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(query, keys.to(query.dtype), input_precision="ieee") * scaling
        if SOFTCAP:
            scores = softcap * (2 / (1 + tl.exp(-2 * scores / softcap)) - 1)
        scores = tl.where(there[None, :], scores, float("-inf"))
        new = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - new[:, None])
        shrink = tl.exp(best - new)
        values = tl.load(
            pages_ptr + at[:, None] + value_offset + head * VALUE_DIM + vd[None, :],
            mask=there[:, None] & (vd < VALUE_DIM)[None, :],
            other=0.0,
        )
        values = values.to(query.dtype)
        weighted = tl.dot(weights.to(query.dtype), values, input_precision="ieee")
        seen = seen * shrink[:, None] + weighted
        total = total * shrink + tl.sum(weights, 1)
        best = new
    tl.store(
        parts_ptr + out[:, None] * VALUE_DIM + vd[None, :],
        seen / total[:, None],
        mask=(g < GROUP)[:, None] & (vd < VALUE_DIM)[None, :],
    )
    tl.store(sums_ptr + out, best + tl.log(total), mask=g < GROUP)


@triton.jit
def _join_parts(
    parts_ptr,
    sums_ptr,
    sinks_ptr,
    out_ptr,
    out_stride,
    SINKS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    GRID_SPLITS: tl.constexpr,
    VD: tl.constexpr,
):
    """Join the parts of a row's query head. The grid is (rows, heads).

    An empty part adds an exact zero, so a larger grid changes nothing. A sink adds to the sum of
    the weights, and nothing to the values.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    vd = tl.arange(0, VD)
    at = ((row * (HEADS // GROUP) + head // GROUP) * GRID_SPLITS) * GROUP + head % GROUP
    best = tl.full([1], float("-inf"), tl.float32)
    for part in range(GRID_SPLITS):
        best = tl.maximum(best, tl.load(sums_ptr + at + part * GROUP))
    if SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32)
        best = tl.maximum(best, sink)
    best = tl.where(best > float("-inf"), best, 0.0)  # a row of length 0 gives zeros
    total = tl.zeros([1], tl.float32)
    if SINKS:
        total += tl.exp(sink - best)
    seen = tl.zeros([VD], tl.float32)
    for part in range(GRID_SPLITS):
        weight = tl.exp(tl.load(sums_ptr + at + part * GROUP) - best)
        # An empty part was never written.
        written = (vd < VALUE_DIM) & (weight > 0)
        at_part = parts_ptr + (at + part * GROUP) * VALUE_DIM
        seen += tl.load(at_part + vd, mask=written, other=0.0) * weight
        total += weight
    joined = seen / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + row * out_stride + head * VALUE_DIM + vd,
        joined.to(out_ptr.dtype.element_ty),
        mask=vd < VALUE_DIM,
    )
