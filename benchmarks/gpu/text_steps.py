"""Compares the ways in which a text step can be computed: overlapped or not, as graphs or not, with
the kernel or without; and times the sampler alone, which may not wait for the card."""

import gc
import statistics
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.text import GREEDY, USUAL, Bench, Grid, open_engine
from benchmarks.gpu.torch_setup import prepare_torch
from benchmarks.random_llama import build_model
from workers.engines.base import Refused
from workers.engines.text.engine import TextEngine
from workers.engines.text.runner import Runner
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import SamplingParams
from workers.protocol import Sampling, TextDone, TextJob, TextOptions

_GRIDS = {
    "real": Grid("8b", (1, 8, 32), (128, 2000), 30, {}),
    "tiny": Grid("tiny", (1, 3), (16,), 3, {}),
}
#: After the plain way, what is worth most first.
_WAYS = (
    TextOptions(overlap="off"),
    TextOptions(overlap="on", graphs="lazy"),
    TextOptions(overlap="on", attention="triton", graphs="lazy"),
    TextOptions(overlap="on", attention="triton"),
    TextOptions(overlap="on"),
    TextOptions(overlap="off", graphs="lazy"),
)
_ONE = 3.0  #: seconds of a measurement
_WAY = 10.0  #: seconds in which a way is opened and measured once
_SAME = 24  #: tokens of an answer that all ways are to give
_SAMPLES = {"real": (64, 128_256, 30), "tiny": (4, 1000, 2)}  #: rows, words, calls
_SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_p and penalties": {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1},
    "top_p and 5 logprobs": {"temperature": 0.8, "top_p": 0.95, "logprobs": 5},
}


def measure(record: Recorder) -> None:
    """Measure a step in each way, beside the plain one, and whether its answers are the same."""
    prepare_torch(record)
    _sampler(record)
    grid = _GRIDS[record.shape]
    plain: dict[tuple[int, int, bool], float] = {}
    said: list[str] = []
    failed: list[str] = []
    for number, options in enumerate(_WAYS):
        how = _name(options)
        share = record.left / (len(_WAYS) - number)
        if share < _WAY:
            record.figure(f"{grid.shape}{how}", "left out", note="no time was left for it")
            continue
        try:
            until = record.left - share
            said.append(_measure_way(record, grid, options, plain, until))
        except Refused as refused:
            record.figure(f"{grid.shape}{how}", 0.0, note=f"not run: {refused.message}")
            continue
        except Exception as error:  # noqa: BLE001  told at the end; the next ways do not need it
            traceback.print_exc()
            failed.append(f"{type(error).__name__}: {str(error)[:150]}")
            record.figure(f"{grid.shape}{how}", 0.0, note=f"failed: {failed[-1]}")
            continue
        finally:
            _empty(record)
        same = next((n for n in range(len(said[0])) if said[-1][n : n + 1] != said[0][n]), None)
        note = "all" if same is None else f"the first {same} of {len(said[0])} characters"
        record.figure(f"{grid.shape}{how}: as the plain way", float(same is None), note=note)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(_WAYS)} ways failed: {'; '.join(failed)}")


def _measure_way(
    record: Recorder,
    grid: Grid,
    options: TextOptions,
    plain: dict[tuple[int, int, bool], float],
    until: float,
) -> str:
    """Measure one way, until so many seconds are left; return its answer.

    Nothing keeps its engine, which has much of the card.
    """
    model = build_model(grid.shape, record.device)
    with open_engine(record, grid, model, options) as engine:
        answer = _answer(engine)
        _measure_steps(record, grid, engine, options, plain, until)
        return answer


def _measure_steps(
    record: Recorder,
    grid: Grid,
    engine: TextEngine,
    options: TextOptions,
    plain: dict[tuple[int, int, bool], float],
    until: float,
) -> None:
    bench, how = Bench(record, grid, engine), _name(options)
    for rows, prompt, sampling in _by_value(grid):
        if record.left < until + _ONE:
            break
        what = rows, prompt, sampling is GREEDY
        seconds = bench.measure(rows, prompt, sampling, how)
        first = plain.setdefault(what, seconds)
        if first != seconds:
            label = f"{grid.shape}{how}, {rows} x {prompt}, greedy {what[2]}: time saved"
            record.figure(label, 100 * (1 - seconds / first), "%")
    if isinstance(engine._runner, Runner) and options.graphs != "off":
        record.figure(f"{grid.shape}{how}: graphs", float(engine._runner.graphs))
    if record.device == "cuda":
        held = torch.cuda.memory_reserved() / 2**30
        record.figure(f"{grid.shape}{how}: memory held", held, "GiB")


def _by_value(grid: Grid) -> list[tuple[int, int, dict[str, Any]]]:
    """Return rows, prompts and ways to choose tokens, what is worth most first."""
    few, many = grid.rows[0], grid.rows[-1]
    first = [(rows, prompt, GREEDY) for prompt in grid.prompts for rows in (few, many)]
    usual = [(rows, prompt, USUAL) for rows, prompt, _ in first]
    between = [
        (rows, prompt, sampling)
        for prompt in grid.prompts
        for rows in grid.rows[1:-1]
        for sampling in (GREEDY, USUAL)
    ]
    return first + usual + between


def _name(options: TextOptions) -> str:
    return f", overlap {options.overlap}, graphs {options.graphs}, {options.attention}"


def _answer(engine: TextEngine) -> str:
    sampling = Sampling(max_tokens=_SAME, temperature=0.0, ignore_eos=True)
    engine.submit(engine.prepare(TextJob(id="same", prompt="the file is", sampling=sampling)))
    text = ""
    while engine.in_flight:
        for event in engine.step():
            if isinstance(event, TextDone):
                text = event.text
    return text


def _sampler(record: Recorder) -> None:
    """Time the choice of a step's tokens; an operation that waits for the card raises."""
    rows, words, calls = _SAMPLES[record.shape]
    logits = torch.randn(rows, words, device=record.device, dtype=torch.bfloat16) * 4
    for name, settings in _SETTINGS.items():
        sampler = Sampler()
        params = [
            SamplingParams(Sampling(max_tokens=1, **settings), row, (1, 2), words)  # type: ignore[arg-type]
            for row in range(rows)
        ]
        seconds = [_sample(record, sampler, logits, params, call) for call in range(calls)]
        figure = 1000 * statistics.median(seconds)
        expected = "0.15-0.4" if record.device == "cuda" and name != "greedy" else ""
        record.figure(f"sampling {rows} x {words}, {name}", figure, "ms", expected=expected)


@torch.inference_mode()
def _sample(
    record: Recorder,
    sampler: Sampler,
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    call: int,
) -> float:
    record.synchronize()
    began = time.perf_counter()
    if record.device == "cuda" and call:  # the first notes the prompts, and loads kernels
        torch.cuda.set_sync_debug_mode("error")
    try:
        sample = sampler.queue(logits, params, [call] * len(params))
        sample.count()
    finally:
        if record.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    sample.collect()
    return time.perf_counter() - began


def _empty(record: Recorder) -> None:
    gc.collect()
    if record.device == "cuda":
        torch.cuda.empty_cache()
