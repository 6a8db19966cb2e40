"""The pages of docs/reference/ are what the code makes of itself."""

import pytest

from scripts.reference.pages import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_reference_is_made_from_the_code(name: str) -> None:
    assert (FOLDER / f"{name}.md").read_text() == PAGES[name](), "run: make reference"


def test_reference_has_no_other_pages() -> None:
    assert {each.stem for each in FOLDER.glob("*.md")} == set(PAGES)
