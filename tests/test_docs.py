"""What is documented is there, and what is there is documented."""

import ast
import re
from pathlib import Path

import pytest

from bitinglip.settings_loader import dotted, every_setting

ROOT = Path(__file__).parents[1]
PACKAGES = ("bitinglip", "workers", "model_store", "cli")
SETTINGS = [path for path, _ in every_setting()]


@pytest.fixture(scope="module")
def names_read() -> set[str]:
    """Return every attribute that the product's code reads outside of the settings."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {
        node.attr
        for file in files
        if file.parent.name != "settings"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("path", SETTINGS, ids=[dotted(path) for path in SETTINGS])
def test_setting_is_read_by_the_product(path: tuple[str, ...], names_read: set[str]) -> None:
    assert path[-1] in names_read


def test_gpu_errors_are_documented_in_the_product_s_own_words() -> None:
    """What docs/gpu.md says that BitingLip says is in its code, so that a search finds it."""
    texts = [
        node.value
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    document = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    said = [part.partition("**Do**")[0] for part in document.split("**Says**")[1:]]
    quotes = [quote for part in said for quote in re.findall(r'"([^"]+)"', part.split(" ## ")[0])]
    assert len(quotes) > 10
    assert [quote for quote in quotes if not any(quote in text for text in texts)] == []
