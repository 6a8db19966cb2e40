"""The page on made-up machines shows what the product says now."""

from pathlib import Path

from scripts.machines_text import machines_text

PAGE = Path(__file__).parents[3] / "docs/machines.md"


def test_page_on_machines_is_current() -> None:
    assert PAGE.read_text() == machines_text(), "run: python -m scripts.machines_text"
