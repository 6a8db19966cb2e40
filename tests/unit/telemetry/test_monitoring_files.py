"""The dashboard for Grafana and the alerts for Prometheus ask for metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.reference.metrics import Described, every_metric

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "bitinglip.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
RULES: list[dict[str, Any]] = ALERTS["groups"][0]["rules"]
METRICS = {each.name: each for each in every_metric()}
_SERIES = re.compile(r"\b((?:bitinglip|gateway|inference)_[a-z_]+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*=~?\"")
_BY = re.compile(r"\bby \(([^)]*)\)")
_OWN = {"instance", "job", "le"}  #: what Prometheus adds


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield variable["query"]
    for rule in RULES:
        yield rule["expr"]


def metric_of(series: str) -> Described | None:
    """Return what a series belongs to; a histogram has three sorts."""
    for suffix in ("", "_bucket", "_sum", "_count"):
        found = METRICS.get(series.removesuffix(suffix))
        if found is not None and (suffix == "" or found.kind == "histogram"):
            return found
    return None


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_monitoring_asks_for_metrics_and_labels_that_exist(expression: str) -> None:
    known = set(_OWN)
    for name, matchers in _SERIES.findall(expression):
        metric = metric_of(name)
        assert metric is not None, name
        known |= set(metric.labels)
        assert set(_LABEL.findall(matchers)) <= set(metric.labels) | _OWN, expression
    for labels in _BY.findall(expression):
        assert {each.strip() for each in labels.split(",")} <= known, expression


def test_dashboard_of_grafana_shows_every_metric() -> None:
    shown = {name for expression in expressions() for name, _ in _SERIES.findall(expression)}
    named = {found.name for each in shown if (found := metric_of(each)) is not None}
    # The version is a label, and sizes of the cache are in /health.
    assert set(METRICS) - named <= {"bitinglip_cache_bytes", "bitinglip_cache_entries"}


def test_dashboard_of_grafana_names_its_panels_once_and_places_them_side_by_side() -> None:
    panels = DASHBOARD["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for each in panels:
        place = each["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & taken
        taken |= own


def test_alerts_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_alerts_are_understood_by_prometheus() -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", check=True, timeout=60)
