"""Declares the settings of traces."""

from pydantic import Field

from bitinglip.settings.addresses import PublicUrl
from bitinglip.settings.sections import Section


class Tracing(Section):
    endpoint: PublicUrl | None = Field(
        None,
        description="base URL of an OpenTelemetry collector that takes OTLP over HTTP, such as "
        "http://127.0.0.1:4318, for traces of requests; needs the extra otel; null is off. Headers "
        "with credentials are read from OTEL_EXPORTER_OTLP_HEADERS",
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of requests that are traced; a request with a traceparent header is "
        "traced if its sender traces it",
    )
    service_name: str = Field(
        "bitinglip", min_length=1, max_length=64, description="the server's name in traces"
    )


class Telemetry(Section):
    tracing: Tracing = Tracing()
