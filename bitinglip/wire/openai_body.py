"""Requests on OpenAI's surface may hold more than the fields that are honoured.

A null is no value, a label has no effect, and a field that is not in OpenAI's schema is
ignored: the response's header names it. A field of the schema that would change the answer is
declared with the values that change nothing (``AllowedValues``), and refused with any other. So a
request's class is the table of its surface: ``treatments`` reads it, OpenAPI's document shows it,
and a test compares it with the official package's types.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from bitinglip.errors import UnsupportedParameter
from bitinglip.wire.body import AllowedValues, Body

MOST_NAMED = 16  #: fields that a response names
_LONGEST_NAME = 64
#: the types of nearly all values, which hold no fields; quicker to ask for than for those that do
_PLAIN = frozenset({str, int, float, bool, dict, type(None)})

#: What becomes of a field: honoured, without effect, accepted with some values, or refused.
Treatment = Literal["honoured", "label", "values", "refused"]


@dataclass(frozen=True)
class _HasNoEffect:
    """Marks a field that only labels a request, or hints at how to serve it."""

    def __get_pydantic_json_schema__(self, _schema: Any, _next: Any) -> dict[str, Any]:
        return {"description": "accepted, and has no effect"}


#: A field that takes any value, which has no effect.
Label = Annotated[Any, _HasNoEffect()]


class OpenAIBody(Body):
    """Holds a part of a request on OpenAI's surface; fields that it does not know
    change nothing."""

    model_config = ConfigDict(extra="allow")


class OpenAIRequest(OpenAIBody):
    """Holds a whole request body; it knows which fields were ignored."""

    def ignored(self) -> list[str]:
        """Name the fields that were ignored; of a large body it takes its time."""
        return _ignored_fields(self)


def unknown_field(name: str) -> UnsupportedParameter:
    """Return the error of a field that is not ignored, as the settings refuse such fields."""
    return UnsupportedParameter(f"'{name}' is unknown or not supported.", param=name)


def treatments(model: type[BaseModel]) -> dict[str, Treatment]:
    """Return what becomes of each field that a request of this class declares."""
    found: dict[str, Treatment] = {}
    for name, field in model.model_fields.items():
        marks = [each for each in field.metadata if isinstance(each, AllowedValues | _HasNoEffect)]
        match marks:
            case [_HasNoEffect()]:
                found[name] = "label"
            case [AllowedValues(allowed=(None,))]:
                found[name] = "refused"
            case [AllowedValues()]:
                found[name] = "values"
            case _:
                found[name] = "honoured"
    return found


def _ignored_fields(body: BaseModel) -> list[str]:
    """Return the fields of a body that were ignored, as paths without indices.

    A null is nothing that was left out. At most 16, each once; names that no header can hold, or
    that are long, are shown as ``?``.
    """
    found: dict[str, None] = {}
    _find_unknown(body, "", found)
    return list(found)


def _find_unknown(body: BaseModel, path: str, found: dict[str, None]) -> None:
    """Add the unknown fields of a body, then those of what it holds, until they are enough."""
    for name, extra in (body.model_extra or {}).items():
        if len(found) == MOST_NAMED:
            return
        if extra is not None:
            found[f"{path}{_shown(name)}"] = None
    values = body.__dict__
    # A request sets few of its fields, and few of those hold others.
    nested = [name for name in body.model_fields_set if type(values.get(name)) not in _PLAIN]
    for name in sorted(nested):
        inner = f"{path}{name}."
        for each in _bodies(values[name]):
            if len(found) == MOST_NAMED:
                return
            _find_unknown(each, inner, found)


def _bodies(value: Any) -> Iterable[BaseModel]:
    """Return the body that a value is, or those in a list, however deep it is."""
    if not isinstance(value, list):
        return (value,) if isinstance(value, BaseModel) else ()
    found: list[BaseModel] = []
    for each in value:
        if type(each) not in _PLAIN:
            found.extend(_bodies(each))
    return found


def _shown(name: str) -> str:
    plain = name.isascii() and name.isprintable() and not set(name) & {",", " ", '"'}
    return name if plain and len(name) <= _LONGEST_NAME else "?"
