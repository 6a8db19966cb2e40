"""The house rules that a machine can hold."""

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("bitinglip", "workers", "model_store", "cli")
MOST_LINES = 400
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}


def sources() -> Iterator[Path]:
    for folder in (*PACKAGES, "tests", "benchmarks", "scripts"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_files_are_short_and_named_for_their_content() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in sources()}
    assert len(lines) > 1000
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long, "which second job do these do?"
    assert [name for name in lines if Path(name).stem in DRAWERS] == []


def test_package_names_are_not_taken_by_others() -> None:
    distributions = importlib.metadata.packages_distributions()
    owners = {package: set(distributions.get(package, ["bitinglip"])) for package in PACKAGES}
    assert owners == {package: {"bitinglip"} for package in PACKAGES}


def test_pickle_is_never_loaded() -> None:
    """Worker events are msgpack; weights are safetensors. One program unpickles tensors, and
    nothing else, in a process of its own that no module imports."""
    reader = ROOT / "workers" / "unpickle.py"
    assert reader.read_text().count("weights_only=True") == 1
    for package in PACKAGES:
        for path in set((ROOT / package).rglob("*.py")) - {reader}:
            text = path.read_text()
            assert "import unpickle" not in text, path
            if "pickle" not in text and not re.search(r"\btorch\s*\.\s*load\b", text):
                continue  # nothing below can be in it, and to parse all takes seconds
            for node in ast.walk(ast.parse(text)):
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else ()
                assert "pickle" not in names, path
                if isinstance(node, ast.Attribute):
                    called = f"{getattr(node.value, 'id', '')}.{node.attr}"
                    assert called not in ("torch.load", "pickle.loads"), path


#: how docstrings begin that are no sentences, and those of functions that do not say what these do
NO_SENTENCE = re.compile(r"(What|Who|Whose|Whoever|Whatever|Whether|Which|Those|How|Of)\b")
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
NO_VERB = re.compile(r"(The|A|An|Its|Their|One|Two|All|Each|Every|No|None|Both|These)\b")


def test_todos_name_their_issue() -> None:
    for path in sources():
        for line in path.read_text().splitlines():
            if re.search(r"#\s*(TODO|FIXME)\b", line):
                assert re.search(r"#\d+", line), f"{path.name}: {line.strip()}"


def test_docstrings_begin_as_sentences() -> None:
    """Check beginnings only: the docstring of a function, if it is no test, begins with a verb."""
    wrong = []
    for path in sources():
        text = path.read_text()
        if not re.search(f'"""({NO_SENTENCE.pattern}|{NO_VERB.pattern})', text):
            continue  # to parse all takes seconds
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, DOCUMENTED):
                continue
            said, name = ast.get_docstring(node) or "", getattr(node, "name", "")
            acts = not isinstance(node, ast.ClassDef | ast.Module) and not name.startswith("test_")
            if NO_SENTENCE.match(said) or (acts and NO_VERB.match(said)):
                wrong.append(f"{path.relative_to(ROOT)} {name}: {said[:60]}")
    assert not wrong, "begin these with a verb"


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
