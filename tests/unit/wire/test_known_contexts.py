"""Tests that what callers have for models is gathered once, and again for another object."""

from dataclasses import replace

from bitinglip.access.keys import Caller
from bitinglip.access.scopes import Scope
from bitinglip.wire.job_context import JobContext, KnownContexts
from tests.support.jobs import job_context

CALLER = Caller("k1", "one", "free", frozenset({Scope.TEXT}))


def test_known_contexts_are_made_once_for_each_caller_and_what_it_asks_for() -> None:
    made: list[JobContext] = []

    def make() -> JobContext:
        made.append(job_context())
        return made[-1]

    known = KnownContexts()
    first = known.of(CALLER, ("m", "normal", 0), make)
    assert known.of(CALLER, ("m", "normal", 0), make) is first
    assert known.of(CALLER, ("m", "low", 0), make) is not first
    assert known.of(CALLER, ("other", "normal", 0), make) is not first
    # An equal caller that is another object: its key may have been changed in what none compares.
    assert known.of(replace(CALLER), ("m", "normal", 0), make) is not first
    assert len(made) == 4


def test_known_contexts_are_none_of_tokens_whose_caller_is_never_seen_again() -> None:
    known = KnownContexts()
    for _ in range(2):
        known.of(replace(CALLER, token="t"), ("m", "normal", 0), job_context)
    assert len(known) == 0


def test_known_contexts_are_bounded() -> None:
    known, context = KnownContexts(), job_context()
    for number in range(10_000):
        known.of(replace(CALLER, key_id=str(number)), ("m", "normal", 0), lambda: context)
    assert len(known) < 5000
