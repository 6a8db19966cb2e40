"""The speech engine beside the library's plain call: the same small Bark, voices and sentences.

    python -m benchmarks.speech [--shape tiny|small|bark] [--device cpu] [--requests 10]

Seconds of computing for each second of sound, and until the first sound; one request, and several
at once against the library's calls one after another. ``bark`` has the real model's shape with
random weights. No end token comes from random weights, so every sentence has its full length.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BarkModel

from benchmarks.random_bark import make_bark
from workers.engines.speech.engine import SpeechEngine
from workers.protocol import Failed, Load, Sound, SpeechJob, Spoken

_TEXT = "The quick brown fox jumps over the lazy dog."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["tiny", "small", "bark"], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    folder = make_bark(arguments.folder, arguments.shape)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    library = BarkModel.from_pretrained(folder, dtype=dtype).eval().to(arguments.device)
    length = json.loads((folder / "generation_config.json").read_text())["semantic_config"][
        "max_input_semantic_length"
    ]
    engine = SpeechEngine()
    spec = Load(
        model="bench",
        engine="speech",
        path=str(folder),
        device=arguments.device,
        threads=arguments.threads,
    )
    ready = engine.load(spec, lambda _part: None)
    print(
        f"torch {torch.__version__}, {arguments.shape}, {ready.dtype} on {ready.device}, "
        f"{arguments.rounds} rounds"
    )
    tokens = AutoTokenizer.from_pretrained(folder)(
        _TEXT,
        return_tensors="pt",
        padding="max_length",
        max_length=length,
        add_special_tokens=False,
        return_token_type_ids=False,
    ).to(arguments.device)
    with tempfile.TemporaryDirectory() as out:
        for count in (1, arguments.requests):
            rounds = [_round(library, tokens, engine, out, count) for _ in range(arguments.rounds)]
            _report(count, rounds)
    engine.close()


def _round(
    library: Any, tokens: Any, engine: SpeechEngine, out: str, count: int
) -> tuple[float, float, float, float]:
    """Seconds by the library, by the engine, until its first sound, and seconds of sound."""
    began = time.perf_counter()
    for seed in range(count):
        torch.manual_seed(seed)
        library.generate(**tokens)
    theirs = time.perf_counter() - began
    began = time.perf_counter()
    for seed in range(count):
        job = SpeechJob(id=f"bench-{seed}", text=_TEXT, seed=seed, folder=out)
        engine.submit(engine.prepare(job))
    first, sound = 0.0, 0.0
    while engine.in_flight:
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Sound):
                first = first or time.perf_counter() - began
            elif isinstance(event, Spoken):
                sound += event.duration
    return theirs, time.perf_counter() - began, first, sound


def _report(count: int, rounds: list[tuple[float, float, float, float]]) -> None:
    theirs, ours, first, sound = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"{count:3d} at once  library {sound / theirs:6.2f} s of sound/s  "
        f"engine {sound / ours:6.2f} s of sound/s  {theirs / ours:5.2f} x  "
        f"first sound after {first:6.2f} s"
    )


if __name__ == "__main__":
    main()
