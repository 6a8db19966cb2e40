"""Runs jobs on any engine until they have ended."""

from collections.abc import Callable
from typing import Any, Protocol

from workers.protocol import Event, Final

_MAX_STEPS = 10_000


class Engine(Protocol):
    """Declares the part of an engine that runs need; each kind has jobs of its own."""

    def prepare(self, job: Any) -> Any: ...
    def submit(self, prepared: Any) -> None: ...
    def step(self) -> list[Event]: ...
    @property
    def in_flight(self) -> int: ...
    def books(self) -> dict[str, int]: ...


def submit(engine: Engine, *jobs: Any) -> None:
    """Hand jobs to an engine, as the worker's threads do."""
    for job in jobs:
        engine.submit(engine.prepare(job))


def run_to_end(engine: Engine, *jobs: Any) -> list[Event]:
    """Run jobs, and those that run already, to their ends; nothing may be held then."""
    submit(engine, *jobs)
    events = step_until(engine, lambda _: not engine.in_flight)
    assert not any(engine.books().values()), "something is still held"
    return events


def step_until(engine: Engine, condition: Callable[[list[Event]], object]) -> list[Event]:
    """Step an engine until the events so far meet a condition, or nothing runs."""
    events: list[Event] = []
    for _ in range(_MAX_STEPS):
        if condition(events) or not engine.in_flight:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def finals(events: list[Event]) -> dict[str, Final]:
    """Return the final events by their jobs; each job has exactly one."""
    found = [event for event in events if isinstance(event, Final)]
    assert len({event.id for event in found}) == len(found), "one final event for each job"
    return {event.id: event for event in found}
