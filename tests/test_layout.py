"""The house rules that a machine can hold."""

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bitinglip", "workers", "model_store", "cli")
MOST_LINES = 400
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}


def sources() -> Iterator[Path]:
    for folder in (*PACKAGES, "tests", "benchmarks", "scripts"):
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short_and_named_for_its_content(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MOST_LINES, f"{path.name} has {lines} lines; which second job does it do?"
    assert path.stem not in DRAWERS


@pytest.mark.parametrize("package", PACKAGES)
def test_package_names_are_not_taken_by_others(package: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(package, ["bitinglip"]))
    assert owners == {"bitinglip"}, f"'{package}' is also brought by {owners}"


def test_pickle_is_never_loaded() -> None:
    """Worker events are msgpack; weights are safetensors. One program unpickles tensors, and
    nothing else, in a process of its own that nobody imports."""
    reader = ROOT / "workers" / "unpickle.py"
    assert reader.read_text().count("weights_only=True") == 1
    for package in PACKAGES:
        for path in set((ROOT / package).rglob("*.py")) - {reader}:
            assert "import unpickle" not in path.read_text(), path
            for node in ast.walk(ast.parse(path.read_text())):
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else ()
                assert "pickle" not in names, path
                if isinstance(node, ast.Attribute):
                    called = f"{getattr(node.value, 'id', '')}.{node.attr}"
                    assert called not in ("torch.load", "pickle.loads"), path


def test_todos_name_their_issue() -> None:
    for path in sources():
        for line in path.read_text().splitlines():
            if re.search(r"#\s*(TODO|FIXME)\b", line):
                assert re.search(r"#\d+", line), f"{path.name}: {line.strip()}"


def test_changelog_knows_the_version() -> None:
    from bitinglip import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_architecture_is_short_and_names_every_module_folder() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert text[: text.index("## Glossary")].count("\n") < 100
    for package in PACKAGES:
        for folder in [ROOT / package, *(ROOT / package).rglob("*")]:
            if folder.is_dir() and any(folder.glob("*.py")):
                assert f"{folder.name}/" in text, f"{folder.relative_to(ROOT)} is not described"
