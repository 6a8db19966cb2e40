"""Measures SDXL's shape on the card: the engine beside the bare diffusers call, short of memory
too."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.image_engine import (
    GUIDANCE,
    MOST,
    SCALES,
    Scale,
    Timing,
    draw,
    loaded_engine,
    next_seeds,
    prompt_of,
    usual_dtype,
)
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.torch_setup import prepare_torch
from benchmarks.random_pipeline import make_pipeline
from workers.engines.image.engine import ImageEngine
from workers.engines.torch_env import release_cached
from workers.protocol import ImageOptions

_GIB = 1 << 30
#: How much of what decoding takes more than denoising is left to it, until memory runs out.
_LEFT = (0.5, 0.25, 0.1, 0.02)


def measure(record: Recorder) -> None:
    """Measure whole pictures first, then running out of memory, then the offload modes."""
    prepare_torch(record)
    scale = SCALES[record.shape]
    with record.seconds(f"{scale.name}: random weights made and written"):
        folder = make_pipeline(record.folder, scale.pipeline, record.device)
    flops = _measure_library(record, folder)
    with tempfile.TemporaryDirectory() as out:
        lives_on = _measure_engine(record, folder, out, flops)
        lives_on &= _measure_float16(record, folder, out)
        if record.device == "cuda":  # the engine refuses offloading on a CPU
            for offload in ("model", "group"):
                _measure_offload(record, folder, out, offload)
    assert lives_on, "An engine did not live on after memory had run out; see the figures."


def measure_compiled(record: Recorder) -> None:
    """Measure compiling at load, and a picture by the compiled blocks."""
    prepare_torch(record)
    scale = SCALES[record.shape]
    if record.device == "cpu":  # the rehearsal goes the same way without the compiler's minutes
        torch.compiler.set_stance("force_eager")
    folder = make_pipeline(record.folder, scale.pipeline, record.device)
    options = ImageOptions(compile=True)
    with (
        tempfile.TemporaryDirectory() as out,
        loaded_engine(record, folder, usual_dtype(record), options, most=1) as engine,
    ):
        draw(record, engine, out, 1, scale.few_steps)  # a warm-up of all that is not compiled
        timing = draw(record, engine, out, 1, scale.steps)
    name = f"{scale.name}, 1 at once, {scale.steps} steps, engine, compiled"
    record.figure(name, timing.seconds, "s/image")
    record.figure(f"{name}, a step", 1000 * timing.step, "ms")


# ---- whole pictures ------------------------------------------------------------------------------


def _measure_library(record: Recorder, folder: Path) -> float:
    """Record the bare diffusers call; gives the floating-point operations of a picture's step."""
    scale = SCALES[record.shape]
    dtype = getattr(torch, usual_dtype(record))
    release_cached(record.device)
    with record.seconds(f"{scale.name}: loaded by diffusers"):
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype).to(record.device)
    pipe.set_progress_bar_config(disable=True)
    flops = _count_flops(record, pipe, scale.side)
    for count, steps in ((1, scale.steps), (MOST, scale.few_steps)):
        _call_library(pipe, scale, count, 2)  # a warm-up of this batch
        record.synchronize()
        began = time.perf_counter()
        _call_library(pipe, scale, count, steps)
        record.synchronize()
        seconds = (time.perf_counter() - began) / count
        record.figure(_name(scale, count, steps, "bare diffusers"), seconds, "s/image")
    return flops


def _call_library(pipe: Any, scale: Scale, count: int, steps: int) -> None:
    seeds = next_seeds(count)
    pipe(
        prompt=[prompt_of(seed) for seed in seeds],
        width=scale.side,
        height=scale.side,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )


def _count_flops(record: Recorder, pipe: Any, side: int) -> float:
    """Count the floating-point operations of one call of the denoiser, for one picture with
    guidance."""
    unet = pipe.unet
    kind: dict[str, Any] = {"dtype": unet.dtype, "device": unet.device}
    rows, side = 2, side // pipe.vae_scale_factor
    pooled = pipe.text_encoder_2.config.projection_dim
    with FlopCounterMode(display=False) as counter:
        unet(
            torch.randn(rows, unet.config.in_channels, side, side, **kind),
            torch.tensor(500, device=unet.device),
            torch.randn(rows, 77, unet.config.cross_attention_dim, **kind),
            added_cond_kwargs={
                "text_embeds": torch.randn(rows, pooled, **kind),
                "time_ids": torch.zeros(rows, 6, **kind),
            },
        )
    flops = float(counter.get_total_flops())
    record.figure("Denoiser, one step of a picture with guidance", flops / 1e12, "TFLOP")
    return flops


def _measure_engine(record: Recorder, folder: Path, out: str, flops: float) -> bool:
    """Record whole pictures, and memory that runs out; gives whether the engine lives on then."""
    dtype = usual_dtype(record)
    with loaded_engine(record, folder, dtype) as engine:
        _measure_pictures(record, engine, out, flops)
        return _measure_running_out(record, engine, out, dtype)


def _measure_pictures(record: Recorder, engine: ImageEngine, out: str, flops: float) -> None:
    scale = SCALES[record.shape]
    for count, steps in ((1, scale.steps), (MOST, scale.few_steps)):
        draw(record, engine, out, count, 2)  # a warm-up of this batch
        engine.device_bytes()  # forgets the peak so far
        timing = draw(record, engine, out, count, steps)
        name = _name(scale, count, steps, "engine")
        note = f"memory was short: {', '.join(timing.fallbacks)}" if timing.fallbacks else ""
        record.figure(name, timing.seconds / count, "s/image", note=note)
        record.figure(
            f"{name}, a step",
            1000 * timing.step,
            "ms",
            achieved=("bf16", count * flops / timing.step),
            expected="90-120 ms" if count == 1 else "",
            note="" if count == 1 else "of all pictures together",
        )
        record.figure(f"{name}, last step to file", timing.decode, "s")
        if (held := engine.device_bytes()) is not None:
            record.figure(f"{name}, peak of the process", held / _GIB, "GiB")


def _measure_offload(record: Recorder, folder: Path, out: str, offload: str) -> None:
    scale = SCALES[record.shape]
    with loaded_engine(record, folder, "bfloat16", ImageOptions(offload=offload)) as engine:
        engine.device_bytes()
        timing = draw(record, engine, out, 1, scale.few_steps)
        name = _name(scale, 1, scale.few_steps, f"engine, offload: {offload}")
        record.figure(name, timing.seconds, "s/image", note="the first picture after the load")
        record.figure(f"{name}, a step", 1000 * timing.step, "ms")
        held = engine.device_bytes() or 0
        record.figure(f"{name}, peak of the process", held / _GIB, "GiB")


def _name(scale: Scale, count: int, steps: int, who: str) -> str:
    return f"{scale.name}, {count} at once, {steps} steps, {who}"


# ---- out of memory -------------------------------------------------------------------------------


def _measure_float16(record: Recorder, folder: Path, out: str) -> bool:
    """Measure as in the usual format; here pipelines cast their decoder to float32
    for each call."""
    with loaded_engine(record, folder, "float16") as engine:
        return _measure_running_out(record, engine, out, "float16")


def _measure_running_out(record: Recorder, engine: ImageEngine, out: str, dtype: str) -> bool:
    """Let decoding run out of memory, and record how that ends; gives whether the engine lives."""
    name = f"Memory runs out in decoding, {dtype}"
    steps = 2 if record.tiny else 4
    release_cached(record.device)  # what denoising takes is told from what decoding takes
    plain = draw(record, engine, out, 1, steps)
    try:
        timing, left = plain, 0.0
        for left in _LEFT:
            release_cached(record.device)
            with _memory_short(record, engine, plain, left):
                timing = draw(record, engine, out, 1, steps, may_fail=True)
            if timing.failure or timing.fallbacks:
                break
        again = draw(record, engine, out, 1, steps)
    except Exception as error:  # noqa: BLE001  the other parts of the check go on
        record.figure(name, f"the worker would end: {type(error).__name__}: {str(error)[:150]}")
        return False
    outcome = timing.failure or "a picture"
    if not timing.failure and not timing.fallbacks:
        outcome = "it did not run out"
    elif timing.fallbacks:
        outcome += f" after {', '.join(timing.fallbacks)}"
    note = f"left to decoding: {left:.0%} of the memory that it takes beyond denoising"
    note = note if record.device == "cuda" else "an error of its kind was raised"
    record.figure(
        name, outcome, expected="a picture after vae_tiling; the engine lives on", note=note
    )
    record.figure(f"{name}, the next picture", again.seconds, "s", note="all memory is back")
    return timing.failure in (None, "OUT_OF_MEMORY")


@contextmanager
def _memory_short(
    record: Recorder, engine: ImageEngine, plain: Timing, left: float
) -> Iterator[None]:
    """Limit the process's memory, so that denoising fits and decoding does not; on a CPU, where
    no such limit exists, raise the error once."""
    if record.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        beyond = plain.total_bytes - plain.denoise_bytes
        limit = (plain.denoise_bytes + left * beyond) / total
        torch.cuda.set_per_process_memory_fraction(limit)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    decoder = engine._pipelines.base.vae

    def run_out(*_args: Any, **_fields: Any) -> None:
        del decoder.decode
        raise torch.OutOfMemoryError("CUDA out of memory, as the rehearsal has it.")

    decoder.decode = run_out
    yield
