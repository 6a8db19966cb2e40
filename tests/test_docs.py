"""Documents and the product: whatever one of them names, the other has."""

import ast
import re
from functools import cache
from pathlib import Path

from bitinglip.settings_loader import dotted, every_setting

ROOT = Path(__file__).parents[1]
PACKAGES = ("bitinglip", "workers", "model_store", "cli")
SETTINGS = [path for path, _ in every_setting()]


@cache
def code() -> tuple[set[str], list[str]]:
    """Return every attribute that the product's code reads outside of the settings, and every text
    in it."""
    names: set[str] = set()
    texts: list[str] = []
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Load)
                and file.parent.name != "settings"
            ):
                names.add(node.attr)
    return names, texts


def test_settings_are_read_by_the_product() -> None:
    assert len(SETTINGS) > 100
    names, _ = code()
    assert [dotted(path) for path in SETTINGS if path[-1] not in names] == []


def test_gpu_errors_are_documented_in_the_product_s_own_words() -> None:
    """Check that the product's messages which docs/gpu.md quotes are in its code."""
    _, texts = code()
    document = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    said = [part.partition("**Do**")[0] for part in document.split("**Says**")[1:]]
    quotes = [quote for part in said for quote in re.findall(r'"([^"]+)"', part.split(" ## ")[0])]
    assert len(quotes) > 10
    assert [quote for quote in quotes if not any(quote in text for text in texts)] == []
