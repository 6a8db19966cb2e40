"""Reads what a tokenizer's file tells of its tokens, without any library of tokenizers."""

from pathlib import Path
from typing import Any

from model_store.kinds import read_any_json

_FILE = "tokenizer.json"


def longest_token(folder: Path) -> int | None:
    """Return the characters of the longest token; None where no file tells them.

    Vocabularies of bytes write each byte as one character, so no text of a token is longer.
    """
    path = folder / _FILE
    if not path.is_file():
        return None
    tokenizer = read_any_json(path)
    if not isinstance(tokenizer, dict):
        return None
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    words = _vocabulary(model) if isinstance(model, dict) else []
    if isinstance(added, list):
        words += [each.get("content") for each in added if isinstance(each, dict)]
    return max((len(word) for word in words if isinstance(word, str)), default=None)


def _vocabulary(model: dict[str, Any]) -> list[Any]:
    """Return the words of a vocabulary: the keys of an object, or the first parts of a list."""
    found = model.get("vocab")
    if isinstance(found, dict):
        return list(found)
    if isinstance(found, list):
        return [pair[0] for pair in found if isinstance(pair, list) and pair]
    return []
