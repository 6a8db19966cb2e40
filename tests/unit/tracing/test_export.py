"""Spans wait within bounds, and what is lost is counted."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from bitinglip.scheduling.event_log import EventLog
from bitinglip.settings.telemetry import Tracing
from bitinglip.telemetry.span_counts import SpanCounts
from bitinglip.tracing import export
from bitinglip.tracing.tracer import Tracer
from tests.support.jobs import text_job
from tests.support.wait import eventually

ASKED = {b"traceparent": b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"}


class Stuck(SpanExporter):
    """Takes one batch and waits, as a collector that accepts and never answers."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.ended = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        self.entered.set()
        self.ended.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.ended.set()


@pytest.fixture
def counts() -> SpanCounts:
    return SpanCounts(CollectorRegistry())


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    found = Stuck()
    yield found
    found.ended.set()


def test_spans_beyond_the_queue_are_dropped_and_counted(
    stuck: Stuck, counts: SpanCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_STOP_SECONDS", 0.1)
    tracer = Tracer(Tracing(), counts, stuck)
    for _ in range(export.MOST_WAITING + 3000):
        span = tracer.begin("/v1/models", {})
        assert span is not None
        span.end(method="GET", route="/v1/models", status=200, request_id="req-1", stranger=False)
    assert stuck.entered.wait(30)
    assert counts.waiting <= export.MOST_WAITING
    assert counts.overflowed >= 3000 - export._BATCH
    tracer.stop()  # though the exporter is stuck
    assert stuck.ended.is_set()
    eventually(lambda: counts.refused > 0)


class Broken(Stuck):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        raise RuntimeError("it is broken")


def test_spans_that_an_exporter_fails_on_are_counted(counts: SpanCounts) -> None:
    counting = export.Counting(Broken(), counts)
    some = cast("list[ReadableSpan]", [None, None])
    assert counting.export(some) is SpanExportResult.FAILURE
    assert (counts.taken, counts.exported, counts.dropped) == (2, 0, 2)


def test_spans_are_made_for_the_share_of_requests_that_the_settings_ask_for(
    stuck: Stuck, counts: SpanCounts
) -> None:
    never = Tracer(Tracing(sample_ratio=0), counts, stuck)
    assert all(never.begin("/v1/models", {}) is None for _ in range(1000))
    assert never.begin("/v1/models", ASKED) is not None
    never.stop()


def test_request_that_is_not_sampled_makes_no_span_and_calls_nothing_of_the_library(
    stuck: Stuck, counts: SpanCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(Tracing(sample_ratio=0), counts, stuck)
    asked: list[Any] = []
    monkeypatch.setattr(tracer._tracer, "start_span", lambda *which, **_: asked.append(which))
    assert tracer.begin("/v1/chat/completions", {}) is None
    tracer.job_ended(EventLog(text_job()), None)
    tracer.stop()
    assert asked == []


@pytest.mark.parametrize(("ratio", "path"), [(0, "/v1/models"), (1, "/livez")])
def test_span_that_a_stranger_asks_for_is_not_sent(
    stuck: Stuck, counts: SpanCounts, ratio: float, path: str
) -> None:
    tracer = Tracer(Tracing(sample_ratio=ratio), counts, stuck)
    for stranger in (True, False):
        span = tracer.begin(path, ASKED)
        assert span is not None
        span.end(method="GET", route=path, status=401, request_id="req-1", stranger=stranger)
        assert counts.ended == (0 if stranger else 1)
    stuck.ended.set()
    tracer.stop()
