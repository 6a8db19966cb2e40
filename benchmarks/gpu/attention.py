"""Find which attention backend torch takes for our shapes, and what a shape's first call costs."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import torch
from torch.nn import functional

from benchmarks.gpu.recorder import Recorder
from workers.engines.text.attention import attend
from workers.engines.text.batch import BatchBuilder
from workers.engines.text.cache import LayerShape, PagedCache
from workers.engines.text.kernels import unusable
from workers.engines.text.plan import Chunk, Plan, Sequence

_BACKENDS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
#: key heads, query heads that share one, head size: as in Llama 3.1 8B, and tiny
_HEADS = {"real": (8, 4, 128), "tiny": (2, 2, 16)}
_LENGTHS = {"real": 40, "tiny": 3}
#: rows and tokens of each, for the kernel beside the copy of pages
_DECODES = {"real": ((1, 32_768), (8, 4096), (64, 1024), (64, 128)), "tiny": ((2, 40),)}
_CALLS = {"real": 30, "tiny": 1}
_BLOCK = 16  #: tokens

_Shape = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def measure(record: Recorder) -> None:
    """Measure first and second calls of many lengths, for decode rows and prompts, cuDNN on and
    off.

    With cuDNN the first call of each length builds a plan, and the process grows by it.
    """
    for enabled in (False, True) if record.device == "cuda" else (False,):
        torch.backends.cuda.enable_cudnn_sdp(enabled)
        for name in ("decode, 1 row", "decode, 8 rows", "prompt"):
            _measure(record, f"{name}, cuDNN {'on' if enabled else 'off'}", name)
    torch.backends.cuda.enable_cudnn_sdp(False)
    for rows, length in _DECODES[record.shape]:
        _measure_in_place(record, rows, length)


@torch.inference_mode()
def _measure_in_place(record: Recorder, rows: int, length: int) -> None:
    """Compare decode attention by a copy of the cache's pages with the kernel that reads them."""
    dtype = torch.bfloat16 if record.device == "cuda" else torch.float32
    device = torch.device(record.device)
    if lack := unusable(device, dtype):
        record.figure(f"kernel, {rows} x {length}", 0.0, "us", note=f"not run: {lack}")
        return
    key_heads, group, size = _HEADS[record.shape]
    shape = LayerShape(key_heads, size, size, None, device)
    blocks = -(-length // _BLOCK)
    cache = PagedCache([shape], rows * blocks, _BLOCK, dtype=dtype)
    cache.pages[0][_BLOCK:].normal_()
    order = torch.randperm(rows * blocks).add(1).tolist()
    sequences = [Sequence(str(row), [0] * length) for row in range(rows)]
    for row, each in enumerate(sequences):
        each.blocks = order[row * blocks : (row + 1) * blocks]
    plan = Plan([Chunk(each, length - 1, length, True) for each in sequences], [], [], [])
    query = torch.randn(rows, key_heads * group, size, dtype=dtype, device=device)
    seen = []
    for name, in_place in (("copied", False), ("in place", True)):
        builder = BatchBuilder(_BLOCK, {None}, dtype=dtype, device=device, in_place=in_place)
        batch = builder.build(plan)
        call = partial(attend, query, cache, 0, batch, scaling=size**-0.5)
        seen.append(call())  # the first call compiles
        figure = 1e6 * statistics.median(_timed(record, call) for _ in range(_CALLS[record.shape]))
        record.figure(f"decode attention, {rows} x {length}, pages {name}", figure, "us")
    worst = (seen[0].float() - seen[1].float()).abs().max().item()
    record.figure(f"decode attention, {rows} x {length}, largest difference", worst, "")


def _timed(record: Recorder, call: Callable[[], torch.Tensor]) -> float:
    record.synchronize()
    began = time.perf_counter()
    call()
    record.synchronize()
    return time.perf_counter() - began


def _measure(record: Recorder, label: str, name: str) -> None:
    model_state = psutil.Process().memory_info().rss
    first, second, chosen = 0.0, 0.0, set()
    count = 0
    for number, shape in enumerate(_shapes(record, name)):
        if number == 0:  # loads the kernel itself
            _seconds(record, shape)
            continue
        first += _seconds(record, shape)
        second += _seconds(record, shape)
        count += 1
        if record.device == "cuda":
            query, key, value, mask = shape
            causal = mask is None
            found = torch._fused_sdp_choice(query, key, value, mask, 0.0, causal)
            chosen.add(_BACKENDS[found])
    grown = (psutil.Process().memory_info().rss - model_state) / 2**20
    note = f"{' and '.join(sorted(chosen)) or 'not told'}; host grew by {grown:.0f} MiB"
    expected = "" if "off" not in label else "< 1"
    figure = 1000 * first / count
    record.figure(f"{label}: first call of a length", figure, "ms", expected=expected, note=note)
    record.figure(f"{label}: second call", 1000 * second / count, "ms", expected="0.03")


def _shapes(record: Recorder, name: str) -> Iterator[_Shape]:
    """Yield tensors as the text engine's attention passes them, of growing length."""
    key_heads, group, size = _HEADS[record.shape]
    dtype = torch.bfloat16
    for number in range(1, _LENGTHS[record.shape] + 1):
        length = 48 * number
        if name == "prompt":  # keys and values shared by a group of query heads, without a copy
            query = torch.randn(key_heads, group, length, size, dtype=dtype, device=record.device)
            both = [
                torch.randn(length, key_heads, size, dtype=dtype, device=record.device)
                .transpose(0, 1)
                .unsqueeze(1)
                .expand(-1, group, -1, -1)
                for _ in range(2)
            ]
            yield query, both[0], both[1], None
            continue
        rows = 1 if "1 row" in name else 8
        query = torch.randn(rows, key_heads, group, size, dtype=dtype, device=record.device)
        both = [
            torch.randn(rows, length, key_heads, size, dtype=dtype, device=record.device).transpose(
                1, 2
            )
            for _ in range(2)
        ]
        mask = torch.zeros(rows, 1, 1, length, dtype=dtype, device=record.device)
        yield query, both[0], both[1], mask


def _seconds(record: Recorder, shape: _Shape) -> float:
    query, key, value, mask = shape
    record.synchronize()
    began = time.perf_counter()
    functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None
    )
    record.synchronize()
    return time.perf_counter() - began
