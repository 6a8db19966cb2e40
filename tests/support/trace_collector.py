"""Plays a collector of traces: takes OTLP over HTTP, and remembers the spans."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Spanned:
    """Describes a span as the collector got it; ids in hex, times in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, str]


@dataclass
class TraceCollector:
    url: str = ""
    spans: list[Spanned] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200  #: of its answers

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for each in scope.spans:
                    self.spans.append(
                        Spanned(
                            name=each.name,
                            trace_id=each.trace_id.hex(),
                            span_id=each.span_id.hex(),
                            parent_id=each.parent_span_id.hex(),
                            start=each.start_time_unix_nano,
                            end=each.end_time_unix_nano,
                            failed=each.status.code == 2,
                            attributes={one.key: _text(one.value) for one in each.attributes},
                        )
                    )

    def trace(self, trace_id: str) -> dict[str, Spanned]:
        """Return the spans of a trace, by name."""
        return {each.name: each for each in self.spans if each.trace_id == trace_id}


def _text(value: object) -> str:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    return str(getattr(value, kind))


@contextmanager
def collect_traces() -> Iterator[TraceCollector]:
    """Run a collector on a free port of this machine."""
    collector = TraceCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if collector.status == 200:
                collector.take(body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
