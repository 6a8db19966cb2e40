"""The page about the guard tells what the recognisers are."""

from scripts.guard_text import PAGE, guard_text


def test_guard_page_is_made_from_the_recognisers() -> None:
    assert PAGE.read_text() == guard_text(), "run: python -m scripts.guard_text"
