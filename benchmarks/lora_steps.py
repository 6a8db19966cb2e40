"""Measures what LoRAs cost a step of single tokens: rows of none, of one and of several LoRAs.

    python -m benchmarks.lora_steps [--rows 8] [--rank 16] [--loras 0 1 4] [--threads 2]

The model is the random 135M Llama of the other text benchmarks; each LoRA changes all of its
projections. The rows take the LoRAs in turns; "merged" is one LoRA in the weights of a copy.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.random_llama import SHAPES, make_model
from workers.engines.text.engine import TextEngine
from workers.protocol import Load, Sampling, TextJob, TextLora, TextOptions

_PROMPT = "the quick brown fox jumps over the lazy dog and " * 10
_GENERATED = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--loras", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "llama-135m")
    asked = parser.parse_args()
    base = make_model(asked.folder)
    with tempfile.TemporaryDirectory() as root:
        loras = [
            write_lora(Path(root, str(number)), asked.rank, seed=number)
            for number in range(max(asked.loras, default=0))
        ]
        engine = opened(base, asked, TextOptions(max_loras=len(loras), max_lora_rank=asked.rank))
        for count in asked.loras:
            began = time.perf_counter()
            step_times(engine, loras[:count], asked.rows, generated=2)
            first = 1000 * (time.perf_counter() - began)
            told = step_times(engine, loras[:count], asked.rows)
            print(f"{count} LoRAs  {told}; before them: {first:.0f} ms", flush=True)
        engine.close()
        if loras:
            merged = opened(base, asked, TextOptions(), adapter=str(loras[0]))
            print(f"merged   {step_times(merged, [], asked.rows)}")
            merged.close()


def opened(base: Path, asked: Any, text: TextOptions, adapter: str | None = None) -> TextEngine:
    engine = TextEngine()
    spec = Load(
        model="bench",
        engine="text",
        path=str(base),
        adapter=adapter,
        device=asked.device,
        threads=asked.threads,
        text=text,
    )
    engine.load(spec, lambda _fraction: None)
    return engine


def write_lora(folder: Path, rank: int, *, seed: int) -> Path:
    """Write a LoRA of all projections of the model, with small random weights, as peft does."""
    shape, random = SHAPES["135m"], torch.Generator().manual_seed(seed)
    keys = shape.hidden // shape.heads * shape.kv_heads
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.hidden, keys),
        "self_attn.v_proj": (shape.hidden, keys),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.hidden, shape.intermediate),
        "mlp.up_proj": (shape.hidden, shape.intermediate),
        "mlp.down_proj": (shape.intermediate, shape.hidden),
    }
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.layers):
        for name, (inputs, outputs) in sizes.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            a = torch.randn(rank, inputs, generator=random) * 0.02
            b = torch.randn(outputs, rank, generator=random) * 0.02
            tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [name.rpartition(".")[2] for name in sizes],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def step_times(
    engine: TextEngine, loras: list[Path], rows: int, *, generated: int = _GENERATED
) -> str:
    """Tell the median over the steps in which all rows have single tokens, by the clock and of the
    processor, which other programs disturb less."""
    sampling = Sampling(max_tokens=generated, ignore_eos=True)
    for row in range(rows):
        lora = TextLora(path=str(loras[row % len(loras)])) if loras else None
        job = TextJob(id=str(row), prompt=_PROMPT, sampling=sampling, lora=lora)
        engine.submit(engine.prepare(job))
    engine.step()
    while not all(each.produced for each in engine._generations.values()):
        engine.step()
    times: list[tuple[float, float]] = [(0.0, 0.0)]
    while engine.in_flight == rows:
        began = time.perf_counter(), time.process_time()
        engine.step()
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    while engine.in_flight:
        engine.step()
    clock, processor = (1000 * statistics.median(each) for each in zip(*times, strict=True))
    return f"{clock:7.2f} ms a step of {rows} rows, {processor:7.2f} ms of the processor"


if __name__ == "__main__":
    main()
