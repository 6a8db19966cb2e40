"""Tracing is opened only where the settings ask for it, and refused where it is not installed."""

import sys

import pytest
from prometheus_client import CollectorRegistry

from bitinglip.settings import Settings
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.span_counts import SpanCounts
from bitinglip.tracing.opening import check_tracing, open_tracer


def test_tracing_without_opentelemetry_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "bitinglip.tracing.export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    wanted = {"telemetry": {"tracing": {"endpoint": "http://127.0.0.1:4318"}}}
    with pytest.raises(SettingsError, match=r"pip install 'bitinglip\[otel\]'"):
        check_tracing(Settings.model_validate(wanted))
    check_tracing(Settings())


def test_tracing_is_off_by_default() -> None:
    assert open_tracer(Settings(), SpanCounts(CollectorRegistry())) is None
