"""Measures the text engine on a card: the time of a step by rows and prompt length."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.step_profile import record_step
from benchmarks.gpu.torch_setup import prepare_torch
from benchmarks.random_llama import SHAPES, build_model, build_tokenizer
from workers.engines.text.engine import TextEngine
from workers.engines.text.loading import LoadedModel
from workers.protocol import (
    Failed,
    Load,
    Sampling,
    Started,
    TextDelta,
    TextDone,
    TextJob,
    TextOptions,
)

_WORDS = ["the", "of", "is", "a", "to", "return", "file", "name"]  #: a token each
_OPENING = 12.0  #: seconds in which a model is made, opened and measured once
_ONE = 8.0  #: seconds of a measurement, at most
_LEAST_TOKENS = 20  #: that a call of generate() is timed over
GREEDY: dict[str, Any] = {"temperature": 0.0}
USUAL: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True, slots=True)
class Grid:
    """Holds the measurements of one model. ``expected``: ms of a decode step, by (rows, prompt)."""

    shape: str
    rows: tuple[int, ...]
    prompts: tuple[int, ...]  #: tokens
    steps: int  #: decode steps of which the median is taken
    expected: dict[tuple[int, int], str]


_GRIDS = {
    "real": (
        Grid(
            "8b",
            (1, 8, 32, 128),
            (128, 2000),
            40,
            {(1, 128): "5.8-6.3 on an H200, 7.3-7.8 on an H100", (8, 128): "6-6.5 on an H200"},
        ),
        Grid("1b", (1, 8, 32, 128), (128, 2000), 40, {}),
    ),
    "tiny": (Grid("tiny", (1, 4), (16,), 3, {}),),
}


def measure(record: Recorder) -> None:
    """Measure each shape by rows and prompt length, greedy and with top_p, and one step by its
    kernels."""
    prepare_torch(record)
    for grid in _GRIDS[record.shape]:
        if record.left < _OPENING:
            record.figure(grid.shape, "left out", note="no time was left for it")
            continue
        model = build_model(grid.shape, record.device)
        with open_engine(record, grid, model) as engine:
            bench = Bench(record, grid, engine)
            for work in _by_value(grid, bench):
                if record.left > _ONE:
                    work()
            _memory(record, grid)
        _empty(record)
    if record.left > _OPENING:  # last: joined projections are the engine's, and this is no engine
        grid = _GRIDS[record.shape][0]
        _library(record, grid, build_model(grid.shape, record.device))
        _empty(record)


def _by_value(grid: Grid, bench: "Bench") -> Iterator[Callable[[], object]]:
    """Yield measurements, what is worth most first: short prompts of one row and of 32."""
    few, many = grid.rows[0], grid.rows[-2]
    short, long = grid.prompts[0], grid.prompts[-1]
    cells = [(few, short), (many, short), (many, long), (few, long)]
    cells += [(rows, prompt) for prompt in grid.prompts for rows in grid.rows]
    ordered = list(dict.fromkeys(cells))
    for rows, prompt in ordered[:2]:
        yield partial(bench.measure, rows, prompt, GREEDY)
    for rows in dict.fromkeys((few, many)):
        yield partial(bench.profile, rows, short)
    yield partial(bench.measure, many, short, USUAL)
    for rows, prompt in ordered[2:]:
        yield partial(bench.measure, rows, prompt, GREEDY)


def measure_compiled_generate(record: Recorder) -> None:
    """Measure one row of generate() with a static cache, compiled: the library's fastest way.

    On a CPU nothing is compiled: a rehearsal.
    """
    prepare_torch(record)
    grid = _GRIDS[record.shape][0]
    model = build_model(grid.shape, record.device)
    with record.seconds(f"{grid.shape}, generate() compiled: first call, with compiling"):
        _generate(model, grid.steps, compiled=True)
    figure = _token_milliseconds(record, model, grid.steps, compiled=True)
    record.figure(f"{grid.shape}, generate() compiled, 1 row", figure, "ms/token")


class Bench:
    """Runs the jobs of one engine and takes the times."""

    def __init__(self, record: Recorder, grid: Grid, engine: TextEngine) -> None:
        self._record = record
        self._grid = grid
        self._engine = engine
        shape = SHAPES[grid.shape]
        head = shape.hidden // shape.heads
        self._token_bytes = 2 * shape.layers * 2 * shape.kv_heads * head
        layer = shape.hidden * (2 * shape.hidden + 2 * shape.kv_heads * head)
        layer += 3 * shape.hidden * shape.intermediate
        self._weight_bytes = 2 * (shape.layers * layer + shape.hidden * shape.words)

    def measure(self, rows: int, prompt: int, sampling: dict[str, Any], how: str = "") -> float:
        """Measure steps of so many rows; return the median seconds. ``how`` goes on the label."""
        label = f"{self._grid.shape}, {_rows(rows)}, prompts of {prompt}{how}"
        label += "" if sampling is GREEDY else ", top_p 0.95"
        seconds, tokens, first = self._begin(rows, prompt, sampling)
        if sampling is GREEDY:
            note = f"first token of the first row after {1000 * first:.0f} ms"
            self._record.figure(f"{label}: reading", tokens / seconds, "tokens/s", note=note)
        steps = [self._step() for _ in range(self._grid.steps)]
        self._end()
        median = statistics.median(steps)
        moved = self._weight_bytes + rows * (prompt + self._grid.steps // 2) * self._token_bytes
        self._record.figure(
            f"{label}: step",
            1000 * median,
            "ms",
            achieved=("copy", moved / median),
            expected=self._grid.expected.get((rows, prompt), "") if sampling is GREEDY else "",
            note=f"{rows / median:.0f} tokens/s; slowest {1000 * max(steps):.1f} ms",
        )
        return median

    def profile(self, rows: int, prompt: int) -> None:
        self._begin(rows, prompt, GREEDY)
        record_step(self._record, f"{self._grid.shape}, {_rows(rows)}", self._step)
        self._end()

    def _begin(self, rows: int, prompt: int, sampling: dict[str, Any]) -> tuple[float, int, float]:
        """Return seconds until every row has a token, tokens of all prompts,
        seconds to the first."""
        settings = Sampling(
            max_tokens=4 * self._grid.steps + 20, ignore_eos=True, seed=1, **sampling
        )
        words = (_WORDS * (prompt // len(_WORDS) + 1))[:prompt]
        jobs = [
            TextJob(id=str(row), prompt=" ".join(words), sampling=settings, stream=True)
            for row in range(rows)
        ]
        prepared = [self._engine.prepare(job) for job in jobs]
        assert len(prepared[0].prompts[0].ids) <= prompt + 1, "words of more than one token"
        self._record.synchronize()
        began = time.perf_counter()
        for each in prepared:
            self._engine.submit(each)
        waiting, tokens, first = {job.id for job in jobs}, 0, 0.0
        while waiting:
            for event in self._engine.step():
                assert not isinstance(event, Failed | TextDone), event
                if isinstance(event, Started):
                    tokens += event.prompt_tokens
                elif isinstance(event, TextDelta):
                    waiting.discard(event.id)
                    first = first or time.perf_counter() - began
        return time.perf_counter() - began, tokens, first

    def _step(self) -> float:
        """Return seconds of a step; it ends with tokens on the host, those of the step before if
        the next is queued already."""
        began = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - began

    def _end(self) -> None:
        for row in range(self._engine.in_flight):
            self._engine.cancel(str(row))
        self._engine.step()
        assert not any(self._engine.books().values())


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


@contextmanager
def open_engine(
    record: Recorder, grid: Grid, model: Any, options: TextOptions | None = None
) -> Iterator[TextEngine]:
    """Return an engine over a model that has no files, with room for the largest of the grid."""
    loaded = LoadedModel(
        model=model,
        tokenizer=build_tokenizer(grid.shape),
        dtype=torch.bfloat16,
        device=torch.device(record.device),
        eos_ids=frozenset(),
        vocab_size=SHAPES[grid.shape].words,
        max_positions=SHAPES[grid.shape].context,
    )
    shape = SHAPES[grid.shape]
    per_token = 4 * shape.layers * shape.kv_heads * shape.hidden // shape.heads
    tokens = grid.rows[-1] * (grid.prompts[-1] + 6 * grid.steps + 64)
    engine = TextEngine(load_model=lambda _spec, _placed: loaded)
    spec = Load(
        model=grid.shape,
        engine="text",
        path="",
        device=record.device,
        max_batch=grid.rows[-1],
        kv_cache_bytes=max(tokens * per_token, 1 << 20),
        text=options,
    )
    with record.seconds(f"{grid.shape}, weights there already: load of the engine"):
        engine.load(spec, lambda _fraction: None)
    try:
        yield engine
    finally:
        engine.close()


def _library(record: Recorder, grid: Grid, model: Any) -> None:
    """Return one row of generate() with a static cache, not compiled, over the same weights."""
    _generate(model, 2, compiled=False)
    figure = _token_milliseconds(record, model, grid.steps, compiled=False)
    record.figure(f"{grid.shape}, generate() with a static cache, 1 row", figure, "ms/token")


def _token_milliseconds(record: Recorder, model: Any, steps: int, *, compiled: bool) -> float:
    """Compute it from a long and a short call, so that the prompt does not count."""
    seconds = []
    steps = max(steps, _LEAST_TOKENS)
    for tokens in (2, 2 + steps):
        record.synchronize()
        began = time.perf_counter()
        _generate(model, tokens, compiled=compiled)
        record.synchronize()
        seconds.append(time.perf_counter() - began)
    return 1000 * (seconds[1] - seconds[0]) / steps


@torch.inference_mode()
def _generate(model: Any, tokens: int, *, compiled: bool) -> None:
    ids = torch.arange(100, device=model.device)[None] % model.config.vocab_size
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        cache_implementation="static",
        disable_compile=not compiled,
    )


def _memory(record: Recorder, grid: Grid) -> None:
    """Record the memory that the allocator holds and nothing uses."""
    if record.device == "cuda":
        used, held = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        note = f"{held / 2**30:.1f} GiB held, {used / 2**30:.1f} in use"
        record.figure(
            f"{grid.shape}: memory held and not used", (held - used) / 2**30, "GiB", note=note
        )


def _empty(record: Recorder) -> None:
    gc.collect()
    if record.device == "cuda":
        torch.cuda.empty_cache()
        left = torch.cuda.memory_allocated() / 2**30
        record.figure("memory in use after the engine's end", left, "GiB", expected="< 0.1")
