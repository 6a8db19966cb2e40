"""Reads calls of tools as models write them: values of many shapes become a name and JSON text."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST_NAME = 256

#: the JSON schemas of each tool's parameters by name, and those by the tool's name
Schemas = Mapping[str, Mapping[str, Any]]


class Call(NamedTuple):
    """Holds a call that a model has written; ``id`` is the model's own, for formats
    that have one."""

    name: str
    arguments: str  #: JSON text of an object
    id: str | None = None


#: Reads the text between the markers of a call; None: it is malformed.
Reader = Callable[[str, Schemas], list[Call] | None]


def call(name: Any, arguments: Any, id: Any = None) -> Call | None:
    """Make a call of parsed values. -> None where they are none"""
    if not isinstance(name, str) or not name.strip() or len(name) > _MOST_NAME:
        return None
    if isinstance(arguments, str):  # some models write JSON into a string
        arguments = object_of(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        return None
    return Call(name.strip(), text, id if isinstance(id, str) and id else None)


def object_of(text: str) -> Any:
    """Return the object that JSON text holds; empty text and null are an empty one.

    -> ``False`` for what is no object, which ``call`` refuses
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return {} if value is None else value if isinstance(value, dict) else False


def call_of_dict(value: Any) -> Call | None:
    """Make a call of an object with a name and arguments, under the words that models use."""
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = {**value, **inner}
    name = value.get("name", value.get("tool_name"))
    if name is None and isinstance(inner, str):
        name = inner
    arguments = value.get("arguments", value.get("parameters"))
    return call(name, arguments, value.get("tool_call_id", value.get("id")))


def calls_of_json(value: Any) -> list[Call] | None:
    """Make calls of an object or of a list of them. -> None if one of them is none"""
    values = value if isinstance(value, list) else [value]
    found = [call_of_dict(each) for each in values]
    calls = [each for each in found if each is not None]
    return calls if calls and len(calls) == len(found) else None


def typed(text: str, schema: Any, *, guess: bool) -> Any:
    """Return the value that text stands for, by the JSON schema of its parameter.

    Text that does not fit its schema stays text. ``guess``: without a schema, JSON is a value.
    """
    types = _types(schema)
    if not types:
        return _value(text, text) if guess else text
    if types == {"string"}:
        return text
    value = _value(text, text)
    if isinstance(value, str):
        return text
    return value if _fits(value, types) else text


def _value(text: str, otherwise: str) -> Any:
    plain = text.strip()
    if plain in ("True", "False", "None"):  # Python's words
        return {"True": True, "False": False, "None": None}[plain]
    try:
        return json.loads(plain)
    except (ValueError, RecursionError):
        return otherwise


def _fits(value: Any, types: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, int):
        return bool(types & {"integer", "number"})
    if isinstance(value, float):
        return "number" in types or ("integer" in types and value.is_integer())
    if value is None:
        return "null" in types
    return ("object" if isinstance(value, dict) else "array") in types


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    declared = schema.get("type")
    found = set(declared) if isinstance(declared, list) else {declared} if declared else set()
    for union in ("anyOf", "oneOf"):
        for choice in schema.get(union) or ():
            found |= _types(choice)
    return {each for each in found if isinstance(each, str)}
