"""Opens the tracing where the settings ask for it; OpenTelemetry is imported only then."""

from typing import TYPE_CHECKING

from bitinglip.extras import install_command
from bitinglip.settings import Settings
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.span_counts import SpanCounts

if TYPE_CHECKING:
    from bitinglip.tracing.tracer import Tracer

_MISSING = "telemetry.tracing.endpoint needs OpenTelemetry, which is not installed"


def check_tracing(settings: Settings) -> None:
    """Raise SettingsError where the settings ask for what is not installed."""
    if settings.telemetry.tracing.endpoint is None:
        return
    try:
        import bitinglip.tracing.export  # noqa: F401  tells whether the extra is there
    except ImportError:
        raise SettingsError([f"{_MISSING}; run: {install_command('otel')}"]) from None


def open_tracer(settings: Settings, counts: SpanCounts) -> "Tracer | None":
    """Return what traces requests; None if the settings do not ask for it."""
    tracing = settings.telemetry.tracing
    if tracing.endpoint is None:
        return None
    from bitinglip.tracing.export import otlp_exporter
    from bitinglip.tracing.tracer import Tracer

    return Tracer(tracing, counts, otlp_exporter(tracing.endpoint))
