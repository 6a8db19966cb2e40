"""Measures the text engine's step loop alone, without processes or HTTP: tokens per second by rows.

    python -m benchmarks.text_engine_step [--rows 1 4 8 16] [--threads 2] [--device cpu]

The model is the random 135M Llama of the other text benchmarks, made once in the folder given.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.random_llama import make_model
from workers.engines.quantization import FORMATS
from workers.engines.text.engine import TextEngine
from workers.protocol import Load, Sampling, TextJob

_PROMPT = "the quick brown fox jumps over the lazy dog and "
_PROMPT_TOKENS = 100
_GENERATED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--quantization", choices=sorted(FORMATS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "llama-135m")
    arguments = parser.parse_args()
    engine = TextEngine()
    spec = Load(
        model="bench",
        engine="text",
        path=str(make_model(arguments.folder)),
        device=arguments.device,
        threads=arguments.threads,
        quantization=arguments.quantization,
    )
    started = time.perf_counter()
    ready = engine.load(spec, lambda _fraction: None)
    seconds = time.perf_counter() - started
    print(f"torch {torch.__version__}, {ready.dtype} on {ready.device}, loaded in {seconds:.1f} s")
    for rows in arguments.rows:
        seconds = step_seconds(engine, rows, arguments.temperature)
        print(f"{rows:3d} rows  {rows / seconds:8.1f} tok/s  {1000 * seconds:6.2f} ms a step")


def step_seconds(
    engine: TextEngine, rows: int, temperature: float, *, generated: int = _GENERATED
) -> float:
    """Return the median over decode steps; the clock starts when all prompts are through."""
    prompt = _PROMPT * (_PROMPT_TOKENS // len(_PROMPT.split()))
    sampling = Sampling(max_tokens=generated, temperature=temperature, ignore_eos=True, seed=1)
    for row in range(rows):
        engine.submit(engine.prepare(TextJob(id=str(row), prompt=prompt, sampling=sampling)))
    for _ in range(rows * _PROMPT_TOKENS // 64 + 4):
        engine.step()
    seconds = []
    while engine.in_flight == rows:
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    while engine.in_flight:
        engine.step()
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
