"""Makes the spans of requests: a root for each that is traced, and what its jobs did below it.

A request that is not traced costs one comparison. Nothing is done for a token or an event: spans of
jobs are made once a job has ended, from the times that its event log has kept.
"""

import random
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from bitinglip import __version__
from bitinglip.scheduling.event_log import EventLog
from bitinglip.settings.telemetry import Tracing
from bitinglip.telemetry.span_counts import SpanCounts
from bitinglip.tracing import genai
from bitinglip.tracing.export import Bounded
from bitinglip.tracing.traceparent import Parent, parse, traceparent
from workers import protocol

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
#: asked for all the time by monitoring
_UNTRACED = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
Interval = tuple[float, float]  #: by the clock of event logs, in seconds


class RequestSpan:
    """Is the root span of a request; ``header`` names it to others."""

    __slots__ = ("_asked", "_span", "header", "headers", "trace_id")

    def __init__(self, span: Span, *, asked: bool) -> None:
        """``asked``: it is made because the request asks for it, and for nothing else."""
        self._span, self._asked = span, asked
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.header = traceparent(context.trace_id, context.span_id)
        self.headers = ((b"traceresponse", self.header.encode()),)

    def end(self, *, method: str, route: str, status: int, request_id: str, stranger: bool) -> None:
        """End it with how the request was answered.

        ``stranger``: it came without a valid key; then what it asked for is not done.
        """
        if stranger and self._asked:
            return  # a span that does not end is not sent
        span, known = self._span, method if method in _METHODS else "_OTHER"
        span.update_name(f"{known} {route}")
        span.set_attributes(
            {
                "http.request.method": known,
                "http.route": route,
                "http.response.status_code": status,
                "bitinglip.request_id": request_id,
            }
        )
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class Tracer:
    """Decides which requests are traced, and makes their spans; used on the event loop."""

    def __init__(self, settings: Tracing, counts: SpanCounts, exporter: SpanExporter) -> None:
        self._ratio = settings.sample_ratio
        self._processor = Bounded(exporter, counts)
        resource = {"service.name": settings.service_name, "service.version": __version__}
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(resource), shutdown_on_exit=False
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("bitinglip", __version__)

    def begin(self, path: str, fields: Mapping[bytes, bytes]) -> RequestSpan | None:
        """Begin the span of a request; None if it is not traced.

        What a client has decided for its trace holds here, too, unless it turns out to be a
        stranger: else any client could fill the collector.
        """
        sent = fields.get(b"traceparent")
        parent = None if sent is None else parse(sent, fields.get(b"tracestate"))
        unasked = random.random() < self._ratio and path not in _UNTRACED
        if not (unasked if parent is None else parent.sampled):
            return None
        context = Context() if parent is None else _context(parent)
        span = self._tracer.start_span("request", context, SpanKind.SERVER)
        return RequestSpan(span, asked=not unasked)

    def job_ended(self, event_log: EventLog, load: Interval | None) -> None:
        """Make the spans of a job: the whole, its wait, the load it waited for, the engine's work.

        ``load``: when the model that served it was loaded.
        """
        parent = parse((event_log.job.trace or "").encode(), None)
        if parent is None or event_log.ended is None:
            return
        submitted, ended = event_log.submitted, event_log.ended
        dispatched = event_log.dispatched
        began = ended if dispatched is None else dispatched
        job = self._job_span(event_log, _context(parent))
        below = set_span_in_context(job, Context())
        queue = self._past("queue", below, (submitted, began))
        if load is not None and submitted < load[1] <= began:
            loaded = (max(submitted, load[0]), load[1])
            attributes = {"bitinglip.model.load_seconds": load[1] - load[0]}
            self._past("model.load", set_span_in_context(queue, Context()), loaded, attributes)
        if dispatched is not None:
            self._engine(event_log, below, (dispatched, ended))
        job.end(_epoch(ended))

    def _job_span(self, event_log: EventLog, parent: Context) -> Span:
        name = f"{event_log.job.traits.operation} {event_log.job.model}"
        attributes = genai.request_attributes(event_log) | genai.response_attributes(event_log)
        start = _epoch(event_log.submitted)
        span = self._tracer.start_span(
            name, parent, SpanKind.INTERNAL, attributes, start_time=start
        )
        if isinstance(event_log.final, protocol.Failed):
            span.set_status(Status(StatusCode.ERROR))
        return span

    def _engine(self, event_log: EventLog, below: Context, spent: Interval) -> None:
        worker = {"bitinglip.worker.id": event_log.worker_id or ""}
        engine = self._past("engine", below, spent, worker)
        first, inside = event_log.first_token, set_span_in_context(engine, Context())
        if first is not None and event_log.job.kind == "text":
            self._past("prefill", inside, (spent[0], first))
            self._past("decode", inside, (first, spent[1]))

    def _past(
        self,
        name: str,
        parent: Context,
        spent: Interval,
        attributes: Mapping[str, str | float] | None = None,
    ) -> Span:
        """Make a span of what is over."""
        start = _epoch(spent[0])
        span = self._tracer.start_span(
            name, parent, SpanKind.INTERNAL, attributes, start_time=start
        )
        span.end(_epoch(spent[1]))
        return span

    def flush(self) -> None:
        """Send the spans that wait; blocks until the collector has answered."""
        self._processor.force_flush()

    def stop(self) -> None:
        """Send the spans that wait; blocks for a few seconds at most."""
        self._processor.stop()


def _context(parent: Parent) -> Context:
    state = TraceState.from_header([parent.state]) if parent.state else None
    told = SpanContext(parent.trace_id, parent.span_id, True, _SAMPLED, state)
    return set_span_in_context(NonRecordingSpan(told), Context())


def _epoch(moment: float) -> int:
    """Return nanoseconds since 1970 of a moment of the monotonic clock."""
    return time.time_ns() - round((time.monotonic() - moment) * 1e9)
