"""Measures speculation by lookup beside the same engine without it, in pairs, in this process.

    python -m benchmarks.speculation [--shape 135m] [--rows 1 4 8] [--tokens 256] [--rounds 5]

A random Llama makes texts of two kinds. Copied: biases hold it to one word, so that every draft is
right, which is the most that speculation can win; real answers lie between, by how much they quote.
Unlucky: biases hold it to four words that follow each other at random, so that drafts are made all
the time and most are wrong; this is what speculation can lose.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe, load_average
from benchmarks.random_llama import SHAPES, make_model
from workers.engines.text.engine import TextEngine
from workers.protocol import Load, Sampling, SpeculationKind, TextDone, TextJob, TextOptions

_WORDS = {"copied": 1, "unlucky": 4}
_PROMPT_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--kinds", choices=sorted(_WORDS), nargs="+", default=[*_WORDS])
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--drafts", type=int, default=TextOptions().draft_tokens)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked, load = parser.parse_args(), load_average()
    with tempfile.TemporaryDirectory(prefix="bench-speculation-") as scratch:
        model = make_model(Path(scratch) / "model", asked.shape)
        plain, lookup = (_engine(model, asked, kind) for kind in ("off", "lookup"))
        for kind in asked.kinds:
            for rows in asked.rows:
                _compare(plain, lookup, kind, rows, asked)
        plain.close()
        lookup.close()
    print(f"\n{describe(load)}")


def _engine(model: Path, asked: argparse.Namespace, kind: SpeculationKind) -> TextEngine:
    engine = TextEngine()
    spec = Load(
        model="bench",
        engine="text",
        path=str(model),
        device=asked.device,
        threads=asked.threads,
        kv_cache_bytes=1 << 29,
        text=TextOptions(speculation=kind, draft_tokens=asked.drafts),
    )
    engine.load(spec, lambda _fraction: None)
    return engine


def _compare(
    plain: TextEngine, lookup: TextEngine, kind: str, rows: int, asked: argparse.Namespace
) -> None:
    """Print the medians of paired rounds; the first pair warms up."""
    ratios, work, without, drafted, accepted = [], [], [], 0, 0
    for number in range(asked.rounds + 1):
        before, work_before, _ = _round(plain, kind, rows, asked.tokens, number)
        after, work_after, ends = _round(lookup, kind, rows, asked.tokens, number)
        if number:
            without.append(before)
            ratios.append(before / after)
            work.append(work_before / work_after)
            drafted += sum(end.drafted_tokens for end in ends)
            accepted += sum(end.accepted_tokens for end in ends)
    speed = rows * asked.tokens / statistics.median(without)
    print(
        f"{kind:8} {rows:3d} rows  {speed:8.1f} tok/s without, times "
        f"{statistics.median(ratios):5.3f} with ({min(ratios):.3f} to {max(ratios):.3f}; by the "
        f"processor's time {statistics.median(work):5.3f}); "
        f"{drafted} drafted, {100 * accepted / max(1, drafted):.0f} % right",
        flush=True,
    )


def _round(
    engine: TextEngine, kind: str, rows: int, tokens: int, number: int
) -> tuple[float, float, list[TextDone]]:
    """Return the seconds from the first decode step to the end, the processor's, and the answers.

    On a busy machine the latter vary less.
    """
    chance = random.Random(number)
    for row in range(rows):
        words = chance.sample(range(100, 8000), _WORDS[kind])
        # Drawn evenly among its words: the model's own preference is far smaller than the noise.
        sampling = Sampling(
            max_tokens=tokens,
            temperature=1.0,
            seed=row,
            ignore_eos=True,
            logit_bias=dict.fromkeys(words, 100.0),
        )
        prompt = tuple(chance.choices(range(100, 8000), k=_PROMPT_TOKENS))
        job = TextJob(id=str(row), prompts=(prompt,), sampling=sampling, stream=False)
        engine.submit(engine.prepare(job))
    ends: list[TextDone] = []
    for _ in range(-(-rows * _PROMPT_TOKENS // 256)):
        engine.step()
    began, work = time.perf_counter(), time.process_time()
    while engine.in_flight:
        ends += [event for event in engine.step() if isinstance(event, TextDone)]
    return time.perf_counter() - began, time.process_time() - work, ends


if __name__ == "__main__":
    main()
