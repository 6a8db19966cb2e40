"""Exported metrics: their names and labels."""

import re
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bitinglip.guard.watch import Watch
from bitinglip.settings import Settings
from bitinglip.telemetry import metrics as metrics_module
from bitinglip.telemetry.cache_metrics import CacheMetrics
from bitinglip.telemetry.device_gauges import DeviceSample
from bitinglip.telemetry.download_metrics import DownloadMetrics
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.metrics import MAX_LABEL_VALUES, Metrics
from bitinglip.telemetry.refusals import LimitRefusals
from bitinglip.telemetry.tally import Tally
from scripts.reference.metrics import every_metric


def text(metrics: Metrics) -> str:
    return metrics.render("")[0].decode()


def finish(metrics: Metrics, **more: Any) -> None:
    values: dict[str, Any] = {
        "model": "m",
        "kind": "text",
        "status": "done",
        "queue_seconds": 0.1,
        "first_token_seconds": 0.5,
        "duration": 1.5,
        "prompt_tokens": 7,
        "completion_tokens": 11,
    }
    metrics.job_finished(**{**values, **more})


def test_metrics_count_requests() -> None:
    metrics = Metrics()
    metrics.request_finished(method="GET", endpoint="/health", status=200, seconds=0.01)
    metrics.request_finished(method="BREW", endpoint="_other", status=405, seconds=0.01)
    shown = text(metrics)
    assert 'gateway_requests_total{endpoint="/health",method="GET",status="200"} 1.0' in shown
    assert 'method="_other"' in shown
    assert "gateway_request_duration_seconds_count 2.0" in shown


def test_metrics_count_jobs() -> None:
    metrics = Metrics()
    finish(metrics)
    shown = text(metrics)
    for line in [
        'inference_requests_total{model="m",type="text"} 1.0',
        'bitinglip_jobs_total{model="m",status="done"} 1.0',
        'bitinglip_tokens_total{kind="prompt",model="m"} 7.0',
        'bitinglip_tokens_total{kind="completion",model="m"} 11.0',
        'bitinglip_time_to_first_token_seconds_sum{model="m"} 0.5',
        'bitinglip_inter_token_seconds_sum{model="m"} 0.1',
        'bitinglip_queue_seconds_sum{model="m"} 0.1',
    ]:
        assert line in shown


def test_metrics_of_a_job_without_tokens_have_no_token_times() -> None:
    metrics = Metrics()
    finish(metrics, first_token_seconds=None, completion_tokens=0, status="failed")
    finish(metrics, completion_tokens=1)
    shown = text(metrics)
    assert 'bitinglip_time_to_first_token_seconds_count{model="m"} 1.0' in shown
    assert "bitinglip_inter_token_seconds_count" not in shown


def test_metrics_have_a_bounded_number_of_model_labels() -> None:
    metrics = Metrics()
    for number in range(MAX_LABEL_VALUES + 50):
        finish(metrics, model=f"m{number}")
    shown = text(metrics)
    assert 'inference_requests_total{model="_other",type="text"} 50.0' in shown


@pytest.mark.parametrize("labels", [("model",), ("model", "reason")])
def test_tally_bounds_its_series_by_itself(labels: tuple[str, ...]) -> None:
    tally = Tally("t_total", "Text", labels, CollectorRegistry(), most=4)
    for number in range(50):
        tally.add((f"m{number}", "lost")[: len(labels)])
    assert len(tally.counts()) == 5
    assert tally.counts()[("_other", "lost")[: len(labels)]] == 46


def test_metrics_have_live_gauges() -> None:
    metrics = Metrics()
    depths = {"m": 3}
    metrics.watch(in_flight=lambda: 4, depth=lambda: depths, workers=lambda: {"ready": 2})
    metrics.set_loop_lag(0.25)
    shown = text(metrics)
    assert "bitinglip_in_flight_requests 4.0" in shown
    assert 'bitinglip_queue_depth{model="m"} 3.0' in shown
    assert 'bitinglip_workers{state="ready"} 2.0' in shown
    assert "bitinglip_event_loop_lag_seconds 0.25" in shown
    assert 'bitinglip_info{version="' in shown


def test_metrics_read_devices_at_each_scrape() -> None:
    metrics = Metrics()
    samples = [DeviceSample("0", total=80, used=30, reserved=20, utilisation=0.5, power_w=41.5)]
    samples[0] = replace(samples[0], slowed_by=("heat",), elsewhere=7)
    metrics.watch(lambda: 0, dict, dict, devices=lambda: samples)
    shown = text(metrics)
    for line in [
        'bitinglip_device_memory_bytes{device="0",kind="total"} 80.0',
        'bitinglip_device_memory_bytes{device="0",kind="used"} 30.0',
        'bitinglip_device_memory_bytes{device="0",kind="reserved"} 20.0',
        'bitinglip_device_utilisation_ratio{device="0"} 0.5',
        'bitinglip_device_power_watts{device="0"} 41.5',
        'bitinglip_device_slowed{by="heat",device="0"} 1.0',
        'bitinglip_device_elsewhere_bytes{device="0"} 7.0',
    ]:
        assert line in shown
    samples[:] = [DeviceSample("cpu", total=9, used=None, reserved=0, utilisation=None)]
    shown = text(metrics)
    assert 'bitinglip_device_memory_bytes{device="cpu",kind="total"} 9.0' in shown
    for gone in (
        'device="0"',
        'kind="used"',
        "bitinglip_device_utilisation_ratio{",
        "power_watts{",
    ):
        assert gone not in shown


def test_metrics_count_loads_and_restarts() -> None:
    metrics = Metrics()
    metrics.load_finished(model="m", seconds=2, source="cache")
    metrics.load_finished(model="m", seconds=1, source=None)
    metrics.worker_restarted(model="m", reason="exited")
    shown = text(metrics)
    assert 'bitinglip_model_loads_total{model="m",result="ok"} 1.0' in shown
    assert 'bitinglip_model_loads_total{model="m",result="failed"} 1.0' in shown
    assert 'bitinglip_model_load_seconds_count{model="m",source="cache"} 1.0' in shown
    assert 'bitinglip_worker_restarts_total{model="m",reason="exited"} 1.0' in shown


def test_metrics_count_distinct_keys_of_the_last_minutes_as_active_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    metrics = Metrics()
    for key in ("a", "b", "a"):
        metrics.user_seen(key)
    assert "gateway_active_users 2.0" in text(metrics)
    now += metrics_module.ACTIVE_SECONDS - 1
    metrics.user_seen("a")
    now += 2
    assert "gateway_active_users 1.0" in text(metrics)


def test_metrics_of_each_instance_have_their_own_registry() -> None:
    finish(Metrics())
    assert 'model="m"' not in text(Metrics())


def test_metrics_are_in_openmetrics_when_asked_for() -> None:
    body, content_type = Metrics().render("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert content_type.startswith("application/openmetrics-text")
    assert Metrics().render("")[1].startswith("text/plain; version=0.0.4")
    asked = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.1"
    assert Metrics().render(asked)[1].startswith("application/openmetrics-text; version=1.0.0")


_WORDS = (
    "application/openmetrics-text text/plain */* ; , = version escaping 1.0.0 0.0.4 2.0.0 abc 1. . "
    '1 ² 1_0.0.0 -1.0.0 1.0.0.0 allow-utf-8 dots values q 0.5 " é'
)


@given(accept=st.lists(st.sampled_from(_WORDS.split()), max_size=12).map("".join))
@example("application/openmetrics-text;version=abc")
@example("text/plain;version=1.x")
@example("application/openmetrics-text;version=1.0.0;version=²")
def test_metrics_format_is_a_known_one_whatever_is_asked_for(accept: str) -> None:
    body, content_type = Metrics().render(accept)
    assert b"gateway_active_users" in body
    version = re.search(r"version=\s*([^;]*)", content_type)
    assert version
    assert version[1] in ("0.0.1", "0.0.4", "1.0.0")


def test_metrics_count_tokens_while_they_are_made_and_never_fewer() -> None:
    metrics = Metrics()
    jobs = [("m", 3, 2), ("m", 1, 1)]
    metrics.watch(lambda: 0, dict, dict, tokens=lambda: jobs)
    line = 'bitinglip_tokens_total{{kind="completion",model="m"}} {}'
    finish(metrics)
    assert line.format("14.0") in text(metrics)
    jobs.clear()  # they were lost uncounted
    assert line.format("14.0") in text(metrics)
    finish(metrics)
    assert line.format("22.0") in text(metrics)


def _series(metrics: Metrics) -> list[str]:
    return [line for line in text(metrics).splitlines() if not line.startswith("#")]


def test_metrics_have_at_most_a_thousand_series_after_ten_thousand_varied_requests() -> None:
    """Every route by every method with every status, eight models of all sorts, what is refused,
    lost, loaded and found on the way."""
    metrics = Metrics()
    refusals, cache = LimitRefusals(metrics.registry), CacheMetrics(metrics.registry)
    downloads = DownloadMetrics(metrics.registry)
    watch = Watch(metrics.registry, Health(), Settings().guard)
    metrics.watch(
        in_flight=lambda: 1,
        depth=lambda: {f"m{each}": 1 for each in range(8)},
        workers=lambda: {"ready": 8, "loading": 1, "spare": 1, "draining": 1},
        devices=lambda: [DeviceSample(str(each), 80, 30, 20, 0.5, 400, 60) for each in range(8)],
        connections=lambda: {"busy": 1, "idle": 1},
        refused=lambda: {"full": 1, "slow": 1, "per_address": 1},
    )
    for number in range(10_000):
        metrics.request_finished(
            method=("GET", "POST", "BREW", f"M{number}")[number % 4],
            endpoint=f"/api/v1/{number % 120}",
            status=(200, 400, 401, 403, 404, 405, 413, 415, 429, 500, 503)[number % 11],
            seconds=number / 1000,
        )
        model = f"m{number % 8}"
        ended = ("done", "failed", "cancelled")[number % 3]
        finish(metrics, model=model, status=ended, duration=number / 100)
        metrics.user_seen(f"key-{number}")
        metrics.worker_restarted(model=model, reason=f"was lost for {number}")
        metrics.load_finished(model=model, seconds=number, source="storage")
        refusals.count(f"reason-{number}", ("free", "pro", "enterprise", "none")[number % 4])
        watch.found(Counter({("email", "phone", "iban")[number % 3]: 1}), "input", "redact")
    cache.asked(hit=True)
    downloads.ended("failed")
    found = _series(metrics)
    assert len(found) <= 1000
    assert 'gateway_requests_total{endpoint="_other",method="_other",status="200"}' in text(metrics)
    counted = [line for line in found if line.startswith("gateway_requests_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == 10_000


def test_metrics_show_each_series_once_when_there_are_too_many_models() -> None:
    metrics = Metrics()
    depths = {f"m{number}": 1 for number in range(MAX_LABEL_VALUES + 9)}
    metrics.watch(in_flight=lambda: 0, depth=lambda: depths, workers=dict)
    assert 'bitinglip_queue_depth{model="_other"} 9.0' in text(metrics)
    names = [line.rpartition(" ")[0] for line in _series(metrics)]
    assert len(set(names)) == len(names)


#: what the contract and the design name, by the words of the contract
NAMED = {
    "gateway_requests_total",
    "gateway_request_duration_seconds",
    "inference_requests_total",
    "gateway_active_users",
    "bitinglip_time_to_first_token_seconds",
    "bitinglip_inter_token_seconds",
    "bitinglip_queue_seconds",
    "bitinglip_queue_depth",
    "bitinglip_tokens_total",
    "bitinglip_images_total",
    "bitinglip_audio_seconds_total",
    "bitinglip_model_loads_total",
    "bitinglip_model_load_seconds",
    "bitinglip_evictions_total",
    "bitinglip_workers",
    "bitinglip_worker_restarts_total",
    "bitinglip_device_memory_bytes",
    "bitinglip_cache_hits_total",
    "bitinglip_limit_refusals_total",
    "bitinglip_event_loop_lag_seconds",
}


def test_metrics_that_the_contract_names_are_declared() -> None:
    declared = {each.name for each in every_metric()}
    assert declared >= NAMED
    assert all(each.text for each in every_metric())
