"""Names the pages of the reference, and what makes each."""

from pathlib import Path

from scripts.reference import cli, errors, http, metrics, settings

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {
    "settings": settings.page,
    "cli": cli.page,
    "http": http.page,
    "errors": errors.page,
    "metrics": metrics.page,
}
