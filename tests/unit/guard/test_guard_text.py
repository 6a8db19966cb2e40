"""The page about the guard tells what the recognisers are."""

from scripts.guard_text import PAGE, guard_text


def test_page_about_the_guard_is_the_one_that_the_recognisers_make() -> None:
    assert PAGE.read_text() == guard_text(), "run: python -m scripts.guard_text"
