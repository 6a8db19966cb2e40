"""Checks whether traces can be sent, where the settings ask for them."""

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cli.checks.findings import Finding, told

if TYPE_CHECKING:
    from bitinglip.settings import Settings

_SECONDS = 2.0  #: for a connection to the collector


def tracing(settings: "Settings") -> Iterator[Finding]:
    """Find a collector that does not answer, or OpenTelemetry that is not installed."""
    from bitinglip.settings_loader import SettingsError
    from bitinglip.tracing.opening import check_tracing

    endpoint = settings.telemetry.tracing.endpoint
    if endpoint is None:
        return
    try:
        check_tracing(settings)
    except SettingsError as error:
        yield told("traces", error)
        return
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_SECONDS).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        yield Finding(
            "traces",
            "warning",
            f"nothing answers at {endpoint} ({reason}); spans are dropped",
            "start the collector, or correct telemetry.tracing.endpoint",
        )
    else:
        yield Finding("traces", "ok", f"a collector listens at {endpoint}")
