"""Measures loading a text model from its files: seconds, and memory that stays."""

import gc
import resource
import time

from benchmarks.gpu.card_memory import CardMemory
from benchmarks.gpu.model_files import make_files, read_seconds
from benchmarks.gpu.recorder import Recorder
from workers.engines.defaults import TEXT_CACHE_BYTES
from workers.protocol import Load

_GIB = 1024**3
_TINY_CACHE = 32 * 1024**2
_STAGES = {0.95: "weights, joined projections, cache and trial"}


def measure(record: Recorder) -> None:
    """Load a Llama by the text engine in this process, close it, and look at memory at each step.

    The shape is eight layers of an 8B model, bfloat16, with the engine's own grant for the cache.
    """
    memory = CardMemory(record.device)
    shape = "tiny" if record.tiny else "8b-8"
    made = make_files(record.device, record.folder, {"text": shape})["text"]
    note = f"{made.size / 1e9:.2f} GB, with the imports that it needs"
    record.figure("files made and written", made.seconds, "s", note=note)
    rate = made.size / read_seconds(made.files) / 1e9
    record.figure("read of the files", rate, "GB/s", note="from the page cache, one thread")
    spec = Load(
        model="text",
        engine="text",
        path=str(made.path),
        device=record.device,
        visible_devices="0" if memory.on_card else "",
        kv_cache_bytes=_TINY_CACHE if record.tiny else None,
    )
    _load(record, memory, spec, made.size)


def _load(record: Recorder, memory: CardMemory, spec: Load, size: int) -> None:
    from workers.engines.text.engine import TextEngine

    used = memory.used()  # imports make no context
    began = time.perf_counter()

    def progress(fraction: float) -> None:
        if fraction in _STAGES:
            record.synchronize()
            passed = time.perf_counter() - began
            _record_memory(record, f"at {passed:.1f} s ({_STAGES[fraction]})")

    engine = TextEngine()
    ready = engine.load(spec, progress)
    record.synchronize()
    seconds = time.perf_counter() - began
    record.figure(
        "load",
        seconds,
        "s",
        expected="" if record.tiny else "1 to 3",
        note=f"{size / seconds / 1e9:.2f} GB/s of files; {ready.slots} rows",
    )
    grant = spec.kv_cache_bytes or TEXT_CACHE_BYTES[record.device]
    _record_memory(record, "loaded", expected=f"{(size + grant) / _GIB:.1f}")
    if memory.on_card:
        _record_excess(record, memory.used() - used)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    note = f"mapped files count; the model has {size / _GIB:.2f} GiB"
    record.figure("RAM at most while loading", peak / _GIB, "GiB", note=note)
    engine.close()
    del engine
    _release(record)
    _record_memory(record, "after close")
    if memory.on_card:
        stays = (memory.used() - used) / _GIB
        record.figure("card's use after close", stays, "GiB", note="the context, by NVML")


def _record_excess(record: Recorder, difference: int) -> None:
    """Record the allocator's reserved and used memory, and that of the context."""
    import torch

    from workers.engines.defaults import CONTEXT_BYTES

    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    excess = 100 * (reserved - allocated) / allocated
    record.figure("reserved above allocated", excess, "%", expected="< 5")
    record.figure("card's use by the load", difference / _GIB, "GiB", note="by NVML")
    record.figure(
        "context",
        (difference - reserved) / 2**20,
        "MiB",
        expected="450 to 550",
        note=f"NVML less reserved; the server's books say {CONTEXT_BYTES / 2**20:.0f}",
    )


def _record_memory(record: Recorder, when: str, expected: str = "") -> None:
    """Record what the allocator has on a card, and on a CPU the process's resident memory."""
    if record.device == "cuda":
        import torch

        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        record.figure(f"allocated {when}", allocated / _GIB, "GiB", expected=expected)
        record.figure(f"reserved {when}", reserved / _GIB, "GiB", expected=expected)
    else:
        import psutil

        record.figure(f"RSS {when}", psutil.Process().memory_info().rss / _GIB, "GiB")


def _release(record: Recorder) -> None:
    gc.collect()
    if record.device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.synchronize()
