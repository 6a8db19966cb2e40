"""Checks texts held to JSON schemas: which are refused, what they cost, and whether texts keep to
them.

    python -m benchmarks.structured schemas FILE [--tokenizer FOLDER]
    python -m benchmarks.structured beside [--shape 135m] [--rows 8] [--threads 2]

``schemas`` reads lines of JSON, each with ``name``, ``schema`` and ``tests`` (``data``, ``valid``).
Each schema leads a text of a tiny random model through the engine, which jsonschema then judges;
hostile schemas do the same beside a text that is held to nothing, as does that text alone;
``--tokenizer`` measures compiling and masks with a real vocabulary, over the instances.
``beside`` measures the step loop of a random Llama with none, half and all rows held.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import torch
from transformers import AutoTokenizer

from benchmarks.random_llama import SHAPES, make_model
from workers.engines.base import Refused
from workers.engines.text.engine import TextEngine
from workers.engines.text.grammar.compiler import Compiled
from workers.engines.text.grammar.grammars import Grammars
from workers.protocol import (
    DeviceKind,
    Failed,
    Final,
    Grammar,
    Load,
    Sampling,
    TextDone,
    TextJob,
)
from workers.protocol.text import GrammarKind

_TOKENS = 1500  #: of a text at most
_AT_ONCE = 8
_CLOSING = ('"', '"}', "}", "]", '",', ",", '":')  #: a random model would never end a text
_BIAS = 6.0
_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["text", "number"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    schemas = commands.add_parser("schemas")
    schemas.add_argument("file", type=Path)
    schemas.add_argument("--tokenizer", type=Path)
    beside = commands.add_parser("beside")
    beside.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    beside.add_argument("--rows", type=int, default=8)
    beside.add_argument("--threads", type=int, default=2)
    beside.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.command == "beside":
        _beside(arguments)
        return
    cases = [json.loads(line) for line in arguments.file.read_text().splitlines()]
    if arguments.tokenizer is not None:
        _measure(cases, arguments.tokenizer)
    _generate(cases)


# ---- the sample of schemas ---------------------------------------------------------------------


def _grammar(case: dict[str, Any]) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(case["schema"]), strict=True)


def _generate(cases: list[dict[str, Any]]) -> None:
    """Make a text by each schema, some at once, and judge it."""
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(make_model(Path(folder) / "tiny", "tiny"), threads=1)
        encode = engine._loaded.tokenizer.encode
        bias = {encode(text, add_special_tokens=False)[0]: _BIAS for text in _CLOSING}
        sampling = Sampling(max_tokens=_TOKENS, temperature=1.0, seed=1, logit_bias=bias)
        steps: list[float] = []
        finals: dict[str, Final] = {}
        for start in range(0, len(cases), _AT_ONCE):
            for number, case in enumerate(cases[start : start + _AT_ONCE], start):
                job = TextJob(id=str(number), prompt="x", sampling=sampling, grammar=_grammar(case))
                engine.submit(engine.prepare(job))
            finals |= _run(engine, steps)
        _hostile(engine)
        engine.close()
    verdicts = Counter(_verdict(finals[str(number)], case) for number, case in enumerate(cases))
    print(f"{len(cases)} schemas, {_AT_ONCE} at once: {dict(sorted(verdicts.items()))}")
    reasons = [final.message for final in finals.values() if isinstance(final, Failed)]
    for reason, times in Counter(each.partition(": ")[2][:60] for each in reasons).most_common():
        print(f"  {times:3d} {reason}")
    print("steps of the engine, ms:", _spread(steps))


def _hostile(engine: TextEngine) -> None:
    """Tell how long steps take beside schemas that are made to take long."""
    plain = TextJob(
        id="plain", prompt="x", sampling=Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
    )
    for name, kind, source in (("none", "regex", "a"), *_hostile_grammars()):
        steps: list[float] = []
        held = msgspec.structs.replace(plain, id="held", grammar=Grammar(kind=kind, source=source))
        for job in (plain, held):
            engine.submit(engine.prepare(job))
        final = _run(engine, steps)["held"]
        said = final.message[:60] if isinstance(final, Failed) else type(final).__name__
        print(f"  beside {name}: {_spread(steps)}; {said}")


def _hostile_grammars() -> Iterator[tuple[str, GrammarKind, str]]:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(11):
        inner = {"type": "object", "properties": {"x": nested}, "required": ["x"]}
        nested = {"oneOf": [nested, inner]}
    many = {f"p{number}": {"type": "string"} for number in range(2000)}
    yield "oneOf eleven deep", "json_schema", json.dumps(nested)
    yield "2000 properties", "json_schema", json.dumps({"type": "object", "properties": many})
    yield (
        "10,000 values",
        "json_schema",
        json.dumps({"enum": [f"value {n}" for n in range(10_000)]}),
    )
    yield "an expression of many states", "regex", "(.*a.{20})|(.*b.{30}c)|[^x]{300}x"
    yield "an ambiguous grammar", "lark", 'start: a+\na: "a" a | a "a" | "a"\n'


def _run(engine: TextEngine, steps: list[float]) -> dict[str, Final]:
    finals: dict[str, Final] = {}
    while engine.in_flight:
        started = time.perf_counter()
        events = engine.step()
        steps.append(time.perf_counter() - started)
        finals |= {event.id: event for event in events if isinstance(event, Final)}
    return finals


def _verdict(final: Final, case: dict[str, Any]) -> str:
    if isinstance(final, Failed):
        return "refused" if final.code == "INVALID_REQUEST" else "FAILED"
    assert isinstance(final, TextDone)
    if final.choices[0].finish_reason == "length":
        return "cut at its length"
    try:
        jsonschema.validate(json.loads(final.text), case["schema"])
    except (ValueError, jsonschema.ValidationError):
        return "WRONG"
    return "valid"


# ---- a real vocabulary -------------------------------------------------------------------------


def _measure(cases: list[dict[str, Any]], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    grammars = Grammars(tokenizer, [tokenizer.eos_token_id], len(tokenizer))
    seconds = _timed(grammars.compiler.warm_up)
    print(f"vocabulary of {len(tokenizer)} tokens made in {1000 * seconds:.0f} ms")
    compiling: list[float] = []
    masks: list[float] = []
    judged: Counter[str] = Counter()
    for case in cases:
        started = time.perf_counter()
        try:
            compiled = grammars.compiler.compile(_grammar(case)).result()
        except Refused:
            continue
        finally:
            compiling.append(time.perf_counter() - started)
        for test in case["tests"]:
            text = json.dumps(test["data"], ensure_ascii=False, indent=2)
            ids = tokenizer.encode(text, add_special_tokens=False)
            taken = _takes(grammars, compiled, ids, masks)
            judged[f"{'valid' if test['valid'] else 'invalid'} {'taken' if taken else 'not'}"] += 1
    print("compiling with the first mask, ms:", _spread(compiling))
    print(f"{len(masks)} tokens with their masks, ms:", _spread(masks))
    print(f"instances: {dict(sorted(judged.items()))}")
    grammars.close()


def _takes(grammars: Grammars, compiled: Compiled, ids: list[int], masks: list[float]) -> bool:
    constraint = grammars.constraint(compiled, may_end=True)
    constraint.wait(60)
    for token in ids:
        started = time.perf_counter()
        constraint.advance(token)
        constraint.wait(60)
        masks.append(time.perf_counter() - started)
        if constraint.error is not None:
            return False
    return constraint.accepting


# ---- with and without, beside each other -------------------------------------------------------


def _beside(arguments: argparse.Namespace) -> None:
    folder = make_model(Path(tempfile.gettempdir()) / f"llama-{arguments.shape}", arguments.shape)
    engine = _engine(folder, threads=arguments.threads, device=arguments.device)
    rows = arguments.rows
    grammar = Grammar(kind="json_schema", source=json.dumps(_SCHEMA))
    first = TextJob(
        id="first", prompt="x", sampling=Sampling(max_tokens=1), grammar=grammar
    )  # its vocabulary and its grammar are made once
    engine.submit(engine.prepare(first))
    _run(engine, [])
    print(f"torch {torch.__version__}, {rows} rows, {arguments.threads} threads")
    for held in (0, rows // 2, rows, 0, rows // 2, rows):
        seconds, cpu = _step_seconds(engine, rows, held, grammar)
        speed = f"{rows / seconds:8.1f} tok/s  {1000 * seconds:6.2f} ms a step"
        print(f"{held:3d} held  {speed}, of all threads' CPU {1000 * cpu:.2f}")
    engine.close()


def _step_seconds(
    engine: TextEngine, rows: int, held: int, grammar: Grammar
) -> tuple[float, float]:
    """Return the median over decode steps of all rows, and the mean of the CPU that they take.

    Strings of random tokens do not end so soon.
    """
    sampling = Sampling(max_tokens=150, temperature=0.0, ignore_eos=True)
    for row in range(rows):
        form = grammar if row < held else None
        job = TextJob(id=str(row), prompt=f"the {row}", sampling=sampling, grammar=form)
        engine.submit(engine.prepare(job))
    for _ in range(20):
        engine.step()
    seconds = []
    cpu = time.process_time()
    while engine.in_flight == rows:
        seconds.append(_timed(engine.step))
    cpu = time.process_time() - cpu
    _run(engine, [])
    return statistics.median(seconds), cpu / len(seconds)


def _engine(folder: Path, *, threads: int, device: DeviceKind = "cpu") -> TextEngine:
    engine = TextEngine()
    spec = Load(model="bench", engine="text", path=str(folder), device=device, threads=threads)
    engine.load(spec, lambda _fraction: None)
    return engine


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _spread(seconds: list[float]) -> str:
    ordered = sorted(1000 * each for each in seconds)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def shown() -> Iterator[str]:
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            yield f"{name} {at(share):.2f}"
        yield f"largest {ordered[-1]:.2f}"

    return ", ".join(shown())


if __name__ == "__main__":
    main()
