"""Sends spans to the collector by a thread of its own, within bounds, and counts what is lost.

The only module that imports OpenTelemetry's SDK, with ``tracer``: it is the extra ``otel``.
"""

import logging
import threading
from collections.abc import Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from bitinglip.telemetry.span_counts import SpanCounts

log = structlog.get_logger(__name__)

MOST_WAITING = 4096  #: spans; more are dropped and counted
_BATCH = 512
_DELAY_MS = 2000.0
_TIMEOUT = 5.0  #: seconds for one batch, attempts included
_STOP_SECONDS = 3.0  #: for what waits at the end


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Make the exporter to a collector; headers are from OTEL_EXPORTER_OTLP_HEADERS."""
    # Its own lines name the address and the answer for each batch; ours say it once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return OTLPSpanExporter(endpoint=f"{endpoint.removesuffix('/')}/v1/traces", timeout=_TIMEOUT)


class Counting(SpanExporter):
    """Counts what an exporter sends, and says once that it cannot, and that it can again."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._counts = counts
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._counts.taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001  the thread that calls this must go on
            log.debug("spans could not be sent", error=type(error).__name__)
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._counts.exported += len(spans)
            if self._failing:
                log.info("the collector of traces takes spans again")
        else:
            self._counts.refused += len(spans)
            if not self._failing:
                log.warning("the collector of traces takes no spans; they are dropped and counted")
        self._failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class Bounded(BatchSpanProcessor):
    """Counts spans that find the queue full, and drops them."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._counts = counts
        self._counting = Counting(exporter, counts)
        super().__init__(
            self._counting,
            max_queue_size=MOST_WAITING + _BATCH,
            schedule_delay_millis=_DELAY_MS,
            max_export_batch_size=_BATCH,
        )

    def on_end(self, span: ReadableSpan) -> None:
        if self._counts.waiting >= MOST_WAITING:
            self._counts.overflowed += 1
            return
        self._counts.ended += 1
        super().on_end(span)

    def stop(self) -> None:
        """Send the spans that wait; blocks for a few seconds at most."""
        sending = threading.Thread(target=self.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_STOP_SECONDS)
        if sending.is_alive():
            self._counting.shutdown()  # ends its waiting between attempts
