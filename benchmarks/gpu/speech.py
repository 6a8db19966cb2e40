"""Measures Bark on the card: its captures, one request and ten at once, a step,
beside the library."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.torch_setup import prepare_torch
from benchmarks.random_bark import make_bark
from benchmarks.speech import StageClock, Studio
from workers.engines.speech.bark import gpt
from workers.engines.torch_env import release_cached

_MIB = 1 << 20
_ROWS = 16  #: of the engine's caches: its default on a card
_SHAPES = {"real": "bark_short", "tiny": "least"}
_REQUESTS = {"real": 10, "tiny": 2}
_STEPS = {"real": 40, "tiny": 3}


def measure(record: Recorder) -> None:
    """Measure the engine first and the library's one call after it, which takes longest."""
    threads = prepare_torch(record)
    with record.seconds("Bark: random weights made and written"):
        folder = make_bark(record.folder, _SHAPES[record.shape], record.device)
    release_cached(record.device)
    with tempfile.TemporaryDirectory() as out:
        with _stages_watched(record) as stages, record.seconds("Bark: both sides loaded"):
            studio = Studio(folder, out, record.device, threads, None, _ROWS)
        _record_captures(record, stages)
        for rows in (1, _ROWS):
            seconds = studio.semantic_step(rows, _STEPS[record.shape])
            record.figure(
                f"Bark, a semantic step, batch {rows}",
                1000 * seconds,
                "ms",
                expected="2-3 ms" if rows == _ROWS else "",
            )
        alone = _measure_requests(record, studio)
        _measure_stages(record, studio, alone)
        studio.engine.close()


@contextmanager
def _stages_watched(record: Recorder) -> Iterator[list[dict[str, float]]]:
    """Note what making each autoregressive stage takes: its caches, and its captures.

    Yields one dictionary a stage: seconds, and bytes of the caches, of the allocator's reserved
    memory and of the whole card's used memory. The last two are 0 without a card.
    """
    stages: list[dict[str, float]] = []
    plain = gpt.Stage.__init__

    def watched(stage: gpt.Stage, *args: Any, **fields: Any) -> None:
        record.synchronize()
        reserved, used = _card_bytes(record)
        began = time.perf_counter()
        plain(stage, *args, **fields)
        record.synchronize()
        seconds = time.perf_counter() - began
        reserved_after, used_after = _card_bytes(record)
        stages.append(
            {
                "seconds": seconds,
                "caches": stage._keys.nbytes + stage._values.nbytes,
                "reserved": reserved_after - reserved,
                "used": used_after - used,
            }
        )

    with patch.object(gpt.Stage, "__init__", watched):
        yield stages


def _card_bytes(record: Recorder) -> tuple[int, int]:
    """Return the allocator's reserved bytes, and the bytes of the card that all processes use."""
    if record.device == "cpu":
        return 0, 0
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.memory_reserved(), total - free


def _record_captures(record: Recorder, stages: list[dict[str, float]]) -> None:
    """Record time and memory of the two stages' graphs; without a card there are none."""
    assert len(stages) == 2, f"{len(stages)} stages were made, not 2"
    totals = {name: sum(each[name] for each in stages) for name in stages[0]}
    record.figure(
        "Bark, the graphs of both stages captured", totals["seconds"], "s", expected="3-6 s"
    )
    record.figure("Bark, caches of both stages", totals["caches"] / _MIB, "MiB")
    for name, label in (("reserved", "allocator's memory"), ("used", "card's memory")):
        grown = (totals[name] - totals["caches"]) / _MIB if record.device == "cuda" else 0.0
        record.figure(
            f"Bark, {label} that the captures take",
            grown,
            "MiB",
            expected="about 1 GiB with a stream for each capture; far less with one stream",
            note="without the caches",
        )


def _measure_requests(record: Recorder, studio: Studio) -> float:
    """Record one request and several at once; gives seconds of sound a second of one request."""
    count = _REQUESTS[record.shape]
    studio.at_once(1)  # a warm-up
    rates: dict[int, float] = {}
    for number in (1, count):
        rounds = 2 if number == 1 and not record.tiny else 1
        runs = [studio.at_once(number) for _ in range(rounds)]
        seconds, first, sound = (statistics.median(each) for each in zip(*runs, strict=True))
        name = f"Bark, {number} at once, engine"
        rates[number] = sound / seconds
        record.figure(name, seconds, "s", note=f"{sound:.1f} s of sound in all")
        record.figure(
            f"{name}, speed",
            rates[number],
            "s of sound/s",
            expected="at least 1 on an H200" if number == 1 else "",
        )
        record.figure(f"{name}, first sound", first, "s")
    return rates[1]


def _measure_stages(record: Recorder, studio: Studio, engine_rate: float) -> None:
    """Record where the time of engine and library goes, and how the two compare."""
    count = _REQUESTS[record.shape]
    clock = StageClock(studio)
    _record_stages(record, "engine, 1 request", clock.seconds(lambda: studio.at_once(1)))
    several = clock.seconds(lambda: studio.at_once(count))
    _record_stages(record, f"engine, {count} at once", several)
    elapsed: list[float] = []
    spent = clock.seconds(lambda: elapsed.append(studio.theirs(1)))
    sound = _seconds_of_sound(studio)
    record.figure("Bark, 1 request, library", elapsed[0], "s", note=f"{sound:.1f} s of sound, once")
    record.figure("Bark, 1 request, library, speed", sound / elapsed[0], "s of sound/s")
    record.figure(
        "Bark, 1 request, engine's speed over the library's",
        engine_rate * elapsed[0] / sound,
        "times",
        expected="at least 3",
    )
    _record_stages(record, "library, 1 request", spent)


def _seconds_of_sound(studio: Studio) -> float:
    """Return how long a sentence is that comes to no end token, as with random weights."""
    semantic = studio.library.generation_config.semantic_config
    return float(semantic["max_new_tokens"] / semantic["semantic_rate_hz"])


def _record_stages(record: Recorder, who: str, spent: dict[str, float]) -> None:
    told = ", ".join(f"{stage} {seconds:.3g} s" for stage, seconds in spent.items())
    record.figure(f"Bark by stage, {who}", told, note="the card is waited for after each function")
