"""Measures prefix reuse: the first token of a prompt whose beginning is cached, and of another one.

    python -m benchmarks.prefixes [--shape 135m] [--tokens 2000] [--rounds 5] [--threads 2]

A random Llama runs in this process. Each round asks for one token of a prompt of its own: without
prefix reuse, with it, and once more with another last word. The first two compute all of it, so
their ratio is what looking for prefixes costs; the third computes what is new. Then other prompts
take the cache, and it is asked for a fourth time: its beginning comes back from RAM. A long one
takes minutes for each layer, so few layers do: each computes and keeps the same, and shares stay.

    python -m benchmarks.prefixes --shape 135m-2 --tokens 60000 --rounds 1
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.machine import describe, load_average
from benchmarks.random_llama import SHAPES, make_model
from workers.engines.text.engine import TextEngine
from workers.protocol import Load, Sampling, TextDone, TextJob, TextOptions

_SHORT = 2000  #: tokens of prompts that only warm up, or take the cache


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--tokens", type=int, default=2000, help="of a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    asked, load = parser.parse_args(), load_average()
    with tempfile.TemporaryDirectory(prefix="bench-prefixes-") as scratch:
        engine = _engine(make_model(Path(scratch) / "model", asked.shape), asked)
        _round(engine, 0, min(asked.tokens, _SHORT))
        times = [_round(engine, number + 1, asked.tokens) for number in range(asked.rounds)]
        engine.close()
    plain, unseen, seen, kept = (
        1000 * statistics.median(each) for each in zip(*times, strict=True)
    )
    print(f"prompt of {asked.tokens} tokens, {asked.shape}, medians of {asked.rounds} rounds")
    print(f"  without prefix reuse  {plain:8.1f} ms")
    print(f"  unseen beginning      {unseen:8.1f} ms  {100 * (unseen / plain - 1):+.1f} %")
    print(f"  seen beginning        {seen:8.1f} ms  {100 * seen / plain:.1f} % of the first")
    print(f"  back from RAM         {kept:8.1f} ms  {100 * kept / plain:.1f} % of the first")
    print(f"\n{describe(load)}")


def _engine(model: Path, asked: argparse.Namespace) -> TextEngine:
    engine = TextEngine()
    spec = Load(model="bench", engine="text", path=str(model), threads=asked.threads)
    sizes = SHAPES[asked.shape]
    width = 2 * sizes.kv_heads * sizes.hidden // sizes.heads
    prompt_bytes = asked.tokens * sizes.layers * width * 2
    spec = msgspec.structs.replace(
        spec,
        kv_cache_bytes=prompt_bytes * 3 // 2,
        text=TextOptions(prefix_ram_bytes=4 * prompt_bytes),
    )
    engine.load(spec, lambda _fraction: None)
    return engine


def _round(engine: TextEngine, number: int, tokens: int) -> tuple[float, float, float, float]:
    """Return the seconds of a prompt without reuse, with it, once more, and back from RAM."""
    prompt = [100 + (17 * place + 31 * number) % 900 for place in range(tokens)]
    plain, _ = _first_token(engine, prompt, None)
    unseen, none = _first_token(engine, prompt, "bench")
    seen, most = _first_token(engine, [*prompt[:-1], 7], "bench")
    for other in range(2 * -(-tokens // _SHORT)):
        _first_token(engine, [1 + other, *prompt[1:_SHORT]], None)
    kept, back = _first_token(engine, [*prompt[:-1], 8], "bench")
    if none or min(most, back) < tokens - 32:
        raise SystemExit(f"{none}, {most} and {back} tokens were cached, of {tokens}")
    return plain, unseen, seen, kept


def _first_token(engine: TextEngine, prompt: list[int], scope: str | None) -> tuple[float, int]:
    """Return the seconds until a prompt's token, and how many of its tokens were cached."""
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    job = TextJob(id="x", prompts=(tuple(prompt),), sampling=sampling, prefix_scope=scope)
    began = time.perf_counter()
    engine.submit(engine.prepare(job))
    while True:
        for event in engine.step():
            if isinstance(event, TextDone):
                return time.perf_counter() - began, event.cached_tokens


if __name__ == "__main__":
    main()
