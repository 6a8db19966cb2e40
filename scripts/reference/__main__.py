"""Writes the pages of docs/reference/: ``python -m scripts.reference``."""

from scripts.reference.pages import FOLDER, PAGES

for name, make in PAGES.items():
    (FOLDER / f"{name}.md").write_text(make())
