"""Tests that no line of a start is wider than the terminal, and that commands stay whole."""

from pathlib import Path

import pytest

from bitinglip.start_text import start_text

MODELS = {f"demo-{number}": ("chat",) for number in range(12)}
PROBLEM = {"card": "its driver is older than what this build of torch asks for; update the driver"}
HOME = Path("/a/home/that/is/not/the/usual/one/and/has/a/long/path/of/many/folders")


def told(columns: int | None) -> list[str]:
    return start_text("http://x:1", [], PROBLEM, MODELS, HOME, columns=columns).splitlines()


@pytest.mark.parametrize("columns", [60, 80])
def test_start_text_is_no_wider_than_the_terminal(columns: int) -> None:
    lines = told(columns)
    assert [line for line in lines if len(line) > columns and "try" not in line] == []
    assert any(line.startswith(" " * 10 + "demo-") for line in lines)
    assert lines[-1].endswith(f"bitinglip chat demo-0 --home {HOME}")


def test_start_text_says_the_same_on_any_terminal() -> None:
    assert " ".join(" ".join(told(60)).split()) == " ".join(" ".join(told(None)).split())
    assert len(told(None)) == 6


def test_start_text_of_a_server_without_devices_blames_no_card() -> None:
    assert "a card is not used" not in "".join(told(None))
    assert any(line.startswith("  devices none yet: its driver") for line in told(None))


def test_start_text_names_the_dashboard_where_it_is_on() -> None:
    off = start_text("http://x:1", [], {}, {}, HOME, dashboard=False)
    assert "dashboard" not in off
    assert "dashboard" in "".join(told(None))
