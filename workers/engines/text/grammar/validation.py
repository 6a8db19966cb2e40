"""Checks a finished text against its schema once more, by another library than the one that led it.

What a client's schema may ask for is bounded: a regular expression of Python's cannot be stopped
and holds the interpreter, so those are left to the grammar, which keeps to them in linear time; all
else ends with its time.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from jsonschema import ValidationError, validators
from jsonschema.protocols import Validator
from referencing import Registry

from workers.protocol import Grammar

_SECONDS = 0.5  #: for all texts of a job
_MOST_CHARACTERS = 1 << 20
_MOST_REASON = 200  #: characters
#: Keywords by regular expressions, and one that takes quadratic time and that no grammar knows.
_LEFT_OUT = {"pattern", "patternProperties", "uniqueItems", "unevaluatedProperties"}

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooLong(Exception):
    """The check has taken its time."""


class _Clock:
    """Ends a check; one runs at a time."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self) -> None:
        self._end = time.monotonic() + _SECONDS

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise _TooLong


_clock = _Clock()


def first_fault(grammar: Grammar, texts: Iterable[str]) -> str | None:
    """Say why one of some whole texts is not of its form.

    None if all are, or as far as it cannot be told in the time that they have together.
    """
    _clock.start()
    return next((found for text in texts if (found := _fault(grammar, text))), None)


def _fault(grammar: Grammar, text: str) -> str | None:
    if len(text) > _MOST_CHARACTERS:
        return None
    match grammar.kind:
        case "choice":
            return None if text in json.loads(grammar.source) else "it is none of the choices"
        case "json_object":
            return _json_fault(text, {"type": "object"})
        case "json_schema":
            return _json_fault(text, json.loads(grammar.source))
        case _:
            return None


def _json_fault(text: str, schema: dict[str, Any]) -> str | None:
    try:
        _clock.check()
        value = json.loads(text)
        kind = _bounded(validators.validator_for(schema, validators.Draft202012Validator))
        error = next(kind(schema, registry=Registry()).iter_errors(value), None)
    except ValueError as error:
        return f"it is no JSON ({error})"
    except Exception:  # noqa: BLE001  it says nothing of the text: too long, too deep, odd schemas
        return None
    return None if error is None else f"{error.json_path}: {error.message}"[:_MOST_REASON]


@lru_cache
def _bounded(kind: type[Validator]) -> type[Validator]:
    keywords: dict[str, Any] = {
        name: _timed(name, keyword)
        for name, keyword in kind.VALIDATORS.items()
        if name not in _LEFT_OUT
    }
    bounded: type[Validator] = validators.create(
        meta_schema=kind.META_SCHEMA, validators=keywords, type_checker=kind.TYPE_CHECKER
    )
    return bounded


def _timed(name: str, keyword: Keyword) -> Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _clock.check()
        if name == "additionalProperties" and "patternProperties" in schema:
            return
        yield from keyword(validator, value, instance, schema) or ()

    return check
