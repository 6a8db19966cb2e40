"""``doctor`` says whether traces can be sent."""

import socket
import sys

import pytest

from bitinglip.settings import Settings
from cli.checks.tracing import tracing


def settings(endpoint: str | None) -> Settings:
    return Settings.model_validate({"telemetry": {"tracing": {"endpoint": endpoint}}})


def test_tracing_that_is_off_is_not_checked() -> None:
    assert list(tracing(settings(None))) == []


def test_tracing_check_finds_a_collector_and_one_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        [found] = tracing(settings(url))
        assert found.level == "ok"
    [found] = tracing(settings(url))
    assert (found.level, bool(found.advice)) == ("warning", True)


def test_tracing_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bitinglip.tracing.export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    [found] = tracing(settings("http://127.0.0.1:1"))
    assert found.level == "error"
    assert found.advice.startswith(sys.executable)
    assert found.advice.endswith("pip install 'bitinglip[otel]'")
