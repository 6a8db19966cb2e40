"""Reads the licence and the languages of a model from its card (README.md) or LICENSE file.

They are its authors' words: shown, and relied on for nothing.
"""

import re
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
_MOST_BYTES = 64 * 1024  #: of a card's front matter, and of a licence that is looked at
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_MOST_LANGUAGES = 200
_LICENSE = re.compile(r"[\w.+ ()/-]{1,80}", re.ASCII)
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{2,8}){0,3}")
#: by the first words of licences that come as a file alone, the hub's name of each
_FIRST_WORDS = (
    (re.compile(r"Apache License\s+Version 2\.0"), "apache-2.0"),
    (re.compile(r"MIT License|Permission is hereby granted, free of charge"), "mit"),
    (re.compile(r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3"), "agpl-3.0"),
    (re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 3"), "gpl-3.0"),
    (re.compile(r"Mozilla Public License Version 2\.0"), "mpl-2.0"),
    (re.compile(r"LLAMA 2 COMMUNITY LICENSE"), "llama2"),
    (re.compile(r"(?i)Llama 3 COMMUNITY LICENSE"), "llama3"),
    (re.compile(r"(?i)Llama 3\.1 COMMUNITY LICENSE"), "llama3.1"),
    (re.compile(r"(?i)Llama 3\.2 COMMUNITY LICENSE"), "llama3.2"),
    (re.compile(r"(?i)Llama 3\.3 COMMUNITY LICENSE"), "llama3.3"),
    (re.compile(r"(?i)CreativeML Open RAIL\+\+-M"), "openrail++"),
    (re.compile(r"(?i)CreativeML Open RAIL-M"), "creativeml-openrail-m"),
)


def describe(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the licence, by the hub's name where there is one, and the languages' codes."""
    card = _front_matter(folder / CARD)
    return _license(card) or _license_of_file(folder), _languages(card.get("language"))


def base_model(folder: Path) -> str | None:
    """Return the one model that a card names as what this one was made from."""
    named = _front_matter(folder / CARD).get("base_model")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    return named if isinstance(named, str) else None


def is_of_lora(text: str) -> bool:
    """Tell whether a card's text has the tag by which the hub lists LoRAs."""
    tags = _parsed(text).get("tags")
    return isinstance(tags, list) and "lora" in tags


def _front_matter(path: Path) -> dict[str, Any]:
    return _parsed(_start(path))


def _parsed(text: str) -> dict[str, Any]:
    found = _FRONT.match(text)
    if found is None:
        return {}
    try:
        card = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}  # a card is for people; one that is not well-formed hides no model
    return card if isinstance(card, dict) else {}


def _start(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")


def _license(card: dict[str, Any]) -> str | None:
    for key in ("license_name", "license"):
        named = card.get(key)
        if isinstance(named, list) and named:
            named = named[0]
        if isinstance(named, str) and named != "other" and _LICENSE.fullmatch(named):
            return named
    return None


def _license_of_file(folder: Path) -> str | None:
    for path in sorted(folder.glob("LICENSE*")):
        text = _start(path)
        for words, name in _FIRST_WORDS:
            if words.search(text):
                return name
    return None


def _languages(told: Any) -> tuple[str, ...]:
    # YAML reads a bare "no", Norwegian, as false.
    listed = [
        "no" if each is False else each for each in (told if isinstance(told, list) else [told])
    ]
    codes = [each for each in listed if isinstance(each, str) and _LANGUAGE.fullmatch(each)]
    return tuple(dict.fromkeys(codes))[:_MOST_LANGUAGES]
