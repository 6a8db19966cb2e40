"""Capacity: the page of docs and the bottlenecks in it."""

from pathlib import Path

import pytest

from benchmarks.capacity import FLEETS, PARTS, Served, page

DOCUMENT = Path(__file__).parents[3] / "docs" / "capacity.md"


def test_capacity_page_adds_up_what_gateways_take_of_shared_parts() -> None:
    one, ten, many = FLEETS
    assert (one.boxes, ten.boxes, many.boxes) == (1, 1, 100)
    served = Served(rate=50.0, tokens=5000.0, busy=0.9, wait=1.0)
    for part in PARTS:
        grown = part.load(served, 100) / part.load(served, 1)
        assert grown == pytest.approx(100 if part.whole else 1)
    told = page([(fleet, served) for fleet in FLEETS])
    assert "| 1,000 | 100 | 5,000 | 500,000 | 90% | 1.0 s |" in told


def test_capacity_page_names_the_source_of_each_figure() -> None:
    text = DOCUMENT.read_text()
    for part in PARTS:
        limit = f"Limit {part.limit:g} a second: {part.source}."
        assert f"- **{part.name}**: {part.unit}. {limit}" in text
