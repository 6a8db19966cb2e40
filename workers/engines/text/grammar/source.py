"""Turns what a request asks for into the grammar language of llguidance. Pure.

Other parts of the engine write grammars of the kind ``lark`` from ``literal`` and ``json_text``.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from workers.engines.base import Refused
from workers.protocol import Grammar
from workers.protocol.bounds import MOST_GRAMMAR

_MOST_REASON = 300  #: characters
#: White space between the tokens of JSON, as people and programs indent it: a space, or the
#: beginning of a line. Without a bound a weak model writes nothing else.
_JSON_SPACE = r"(\x20|\x0D?\x0A[\x20\x09]{0,32})"
_ANY_OBJECT = {"type": "object"}
#: Those that llguidance can lead a text by; the standard takes any other for a remark.
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
#: Keywords that hold schemas by names of the author's, and those that hold values.
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_VALUES = frozenset({"const", "enum", "default", "examples"})


def translate(grammar: Grammar) -> str:
    """Return the grammar as llguidance reads it. Raises Refused: INVALID_REQUEST.

    Most faults of a grammar come out when it is compiled, not here.
    """
    if len(grammar.source) > MOST_GRAMMAR:
        raise refusal(grammar, f"it is longer than {MOST_GRAMMAR} characters")
    match grammar.kind:
        case "json_object":
            return _json(_ANY_OBJECT, strict=True)
        case "json_schema":
            return _json(_schema(grammar), strict=grammar.strict)
        case "regex":
            return LLMatcher.grammar_from_lark(f"start: {_regex(grammar.source)}")
        case "choice":
            return LLMatcher.grammar_from_lark(f"start: {_choice(grammar.source)}")
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.source)


def literal(text: str, added: Mapping[str, int]) -> str:
    """Return Lark that matches exactly this text, as its tokeniser would write it.

    ``added`` are the ids of the tokens added to the vocabulary by their texts: the model writes
    such a text as that one token.
    """
    if not any(name in text for name in added):
        return _quoted(text)
    names = "|".join(re.escape(name) for name in sorted(added, key=len, reverse=True))
    parts = [part for part in re.split(f"({names})", text) if part]
    written = [f"<[{added[part]}]>" if part in added else _quoted(part) for part in parts]
    return " ".join(written) or '""'


def rule_body(grammar: Grammar) -> str:
    """Return Lark that matches what a grammar matches, to be the whole body of a rule.

    Raises Refused: INVALID_REQUEST.
    """
    match grammar.kind:
        case "json_object":
            return json_text(_ANY_OBJECT)
        case "json_schema":
            return json_text(_schema(grammar), strict=grammar.strict)
        case "regex":
            return _regex(grammar.source)
        case "choice":
            return _choice(grammar.source)
        case "lark":
            return f"%lark {{\n{grammar.source}\n}}"


def json_text(schema: Mapping[str, Any], *, strict: bool = False) -> str:
    """Return Lark that matches JSON of this schema, to be the whole body of a rule."""
    known = schema if strict else _known_formats(schema)
    return f"%json {json.dumps({**known, 'x-guidance': _options(strict=strict)})}"


def refusal(grammar: Grammar, reason: str) -> Refused:
    """Return the refusal of a grammar, with what is wrong with it."""
    text = " ".join(reason.replace("<non-verbose/>", "").split())
    return Refused(
        "INVALID_REQUEST",
        f"The text cannot be held to this form: {text[:_MOST_REASON]}",
        param=grammar.param,
    )


def _options(*, strict: bool) -> dict[str, Any]:
    """Return llguidance's options for JSON.

    Where alternatives of a ``oneOf`` overlap it can only promise that one or more of them hold; a
    strict schema is refused then.
    """
    return {"whitespace_pattern": _JSON_SPACE, "coerce_one_of": not strict, "lenient": False}


def _schema(grammar: Grammar) -> Any:
    try:
        schema = json.loads(grammar.source)
        if not grammar.strict:
            schema = _known_formats(schema)
    except (ValueError, RecursionError) as error:
        raise refusal(grammar, f"the schema is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise refusal(grammar, "the schema is not an object")
    return schema


def _known_formats(schema: Any) -> Any:
    """Return a schema without formats of strings that the library does not know."""
    if isinstance(schema, list):
        return [_known_formats(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    known: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _VALUES:
            known[key] = value
        elif key in _BY_NAME and isinstance(value, dict):
            known[key] = {name: _known_formats(each) for name, each in value.items()}
        elif key != "format" or not isinstance(value, str) or value in _FORMATS:
            known[key] = _known_formats(value)
    return known


def _json(schema: dict[str, Any], *, strict: bool) -> str:
    options: Any = _options(strict=strict)
    return LLMatcher.grammar_from_json_schema(schema, overrides=options)


def _regex(source: str) -> str:
    """Return a terminal that is a whole text; its anchors say the same, and the library has none.

    Digits are those of ASCII, which an author of an expression nearly always means.
    """
    start = 1 if source.startswith("^") else 0
    end = len(source)
    if source.endswith("$") and (end - len(source[: end - 1].rstrip("\\"))) % 2:
        end -= 1
    expression = regex_to_lark(source[start:end], "d")
    return f"/{expression}/"


def _choice(source: str) -> str:
    choices = json.loads(source)
    return " | ".join(map(_quoted, choices))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
