"""The page on made-up machines shows what the product says now."""

from scripts.machines_text import PAGE, machines_text


def test_machines_page_is_current() -> None:
    assert PAGE.read_text() == machines_text(), "run: python -m scripts.machines_text"
