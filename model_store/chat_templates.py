"""Reads what a model's files say of its chat template; only workers run templates."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_store.kinds import read_json

#: Variables by which templates take settings of a request.
SWITCHES = ("enable_thinking", "reasoning_effort", "thinking", "tools", "verbosity")
#: how templates name thoughts: a switch for them, a message's field, or the marks around them
_REASONING = re.compile(
    r"\benable_thinking\b|\breasoning_(?:effort|content)\b|</?think(?:ing)?>|<\|channel\|>analysis"
)
#: Types of models without turns, for which the engine has a template of its own.
WITHOUT_TURNS = frozenset({"paligemma"})
_LONGEST = 1_000_000  #: characters of a template; the engine takes no longer one


def has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(read_json(path).get("chat_template"))


def switches(folder: Path) -> tuple[str, ...]:
    """Return the settings that any of the folder's templates names."""
    sources = [source[:_LONGEST] for source in _sources(folder)]
    return tuple(
        name
        for name in SWITCHES
        if any(re.search(rf"\b{name}\b", source) is not None for source in sources)
    )


def writes_reasoning(folder: Path) -> bool:
    """Tell whether a template knows of thoughts that come before an answer."""
    return any(_REASONING.search(source[:_LONGEST]) is not None for source in _sources(folder))


def _sources(folder: Path) -> Iterator[str]:
    files = [folder / "chat_template.jinja"]
    files += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    for path in files:
        if path.is_file():
            yield path.read_text("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            yield from _listed(read_json(folder / name).get("chat_template"))


def _listed(template: Any) -> Iterator[str]:
    """Yield one template, or those of a list of named ones."""
    if isinstance(template, str):
        yield template
    elif isinstance(template, list):
        for each in template:
            if isinstance(each, dict) and isinstance(each.get("template"), str):
                yield each["template"]
