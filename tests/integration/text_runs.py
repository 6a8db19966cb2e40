"""Runs of the text engine over tiny models, to their ends."""

from pathlib import Path
from typing import Any

from workers.engines.text.engine import TextEngine
from workers.protocol import Cancelled, Done, Event, Failed, Load, Ready, Sampling, TextJob

BLOCK_SIZE = 4


def load(
    path: Path, *, step_tokens: int | None = None, kv_cache_bytes: int = 1 << 20, **spec: Any
) -> tuple[TextEngine, Ready]:
    engine = TextEngine(step_tokens=step_tokens, block_size=BLOCK_SIZE)
    settings = {"dtype": "float32", "kv_cache_bytes": kv_cache_bytes, "threads": 1, **spec}
    order = Load(model="tiny", engine="text", path=str(path), **settings)
    return engine, engine.load(order, lambda _fraction: None)


def job(name: str, prompt: str = "one two", *, stream: bool = True, **sampling: Any) -> TextJob:
    settings = Sampling(**{"max_tokens": 12, "ignore_eos": True, **sampling})
    return TextJob(id=name, prompt=prompt, sampling=settings, stream=stream)


def run(engine: TextEngine, *jobs: TextJob) -> dict[str, Done]:
    """All to their ends, at once; afterwards nothing is held."""
    for one in jobs:
        engine.submit(engine.prepare(one))
    return done(finish(engine))


def finish(engine: TextEngine) -> list[Event]:
    events: list[Event] = []
    for _ in range(5000):
        if not engine.in_flight:
            break
        events += engine.step()
    assert engine.in_flight == 0
    assert not any(engine.books().values())
    return events


def done(events: list[Event]) -> dict[str, Done]:
    finals = [event for event in events if isinstance(event, Done | Failed | Cancelled)]
    assert len({event.id for event in finals}) == len(finals), "one final event each"
    return {event.id: event for event in finals if isinstance(event, Done)}
