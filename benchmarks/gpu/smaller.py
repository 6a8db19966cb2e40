"""Measures smaller weights and a smaller cache beside bfloat16: swaps, memory, tokens a second."""

import gc
import time
from typing import Any

from benchmarks.gpu.model_files import Made, make_files, read_seconds
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.torch_setup import prepare_torch
from benchmarks.text_engine_step import step_seconds
from workers.engines.base import Refused
from workers.engines.quantization import FORMATS, package_lack
from workers.engines.torch_env import held_bytes
from workers.protocol import Load, TextOptions

_TINY_CACHE = 32 * 1024**2
_ROWS = {"real": (1, 8, 32), "tiny": (1,)}
#: ms of a step of one row with eight layers of an 8B model on an H200: 3.5 GB of weights in the
#: layers, or half of it, and 1 GB in the head, at three quarters of 4.8 TB/s.
_EXPECTED = {None: "1.3", "int8": "0.8", "fp8": "0.8"}


def measure(record: Recorder) -> None:
    """Load a Llama in each format from the same files, one after the other, and time its steps.

    The first load is in full precision; so each of the others is a swap.
    """
    prepare_torch(record)
    made = make_files(record.device, record.folder, {"text": "tiny" if record.tiny else "8b-8"})
    read = read_seconds(made["text"].files)
    record.figure("read of the files", read, "s", note="from the page cache, one thread")
    _one(record, made["text"], read, "bf16", quantization=None)
    for name in FORMATS:
        if lack := package_lack(name):
            record.figure(name, "left out", note=lack)
        else:
            _one(record, made["text"], read, name, quantization=name)
    small = TextOptions(kv_cache_dtype="fp8")
    _one(record, made["text"], read, "bf16, fp8 cache", text=small)
    if record.device == "cuda":
        both = TextOptions(kv_cache_dtype="fp8", attention="triton")
        _one(record, made["text"], read, "fp8, fp8 cache in place", quantization="fp8", text=both)


def _one(record: Recorder, made: Made, read: float, name: str, **settings: Any) -> None:
    from workers.engines.text.engine import TextEngine

    spec = Load(
        model="text",
        engine="text",
        path=str(made.path),
        device=record.device,
        visible_devices="0" if record.device == "cuda" else "",
        kv_cache_bytes=_TINY_CACHE if record.tiny else None,
        warmup=False,
        **settings,
    )
    engine, began = TextEngine(), time.perf_counter()
    try:
        engine.load(spec, lambda _fraction: None)
    except Refused as refused:
        record.figure(name, "refused", note=refused.message)
        return
    record.synchronize()
    seconds = time.perf_counter() - began
    note = f"{made.size / seconds / 1e9:.2f} GB/s of the files; {seconds / read:.2f} times the read"
    record.figure(f"{name}: load", seconds, "s", note=note)
    if (held := held_bytes(record.device)) is not None:
        record.figure(f"{name}: memory", held / 2**30, "GiB", note="with its cache")
    record.figure(f"{name}: blocks of the cache", engine._runner.blocks)
    for rows in _ROWS[record.shape]:
        step = step_seconds(engine, rows, 0.0, generated=40 if record.tiny else 200)
        known = "" if record.tiny else _EXPECTED.get(settings.get("quantization"), "")
        expected = known if rows == 1 else ""
        record.figure(f"{name}: step of {rows} rows", 1000 * step, "ms", expected=expected)
        record.figure(f"{name}: {rows} rows", rows / step, "tokens/s")
    engine.close()
    del engine
    gc.collect()
    if record.device == "cuda":
        import torch

        torch.cuda.empty_cache()
