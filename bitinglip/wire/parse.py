"""Parsing makes bytes a checked request, or raises an error that names the field, not its value."""

import re
from difflib import get_close_matches
from itertools import accumulate
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from bitinglip.errors import InvalidRequest, UnsupportedParameter

MAX_DEPTH = 64
MAX_ELEMENTS = 100_000
MAX_MEMBERS = 32_768  #: of all objects together: each may be wrong, and all errors are made first
LARGE = 256 * 1024  #: bytes of a body that takes too long to check beside other requests
_MANY = 4096  #: members and elements of such a body
_MAX_ERRORS = 500  #: of which the library is asked for the first: it makes them all
_MAX_PARAM = 128
#: Possessive and with an optional end, so that it is linear whatever it is given.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
#: A piece of a string: one match holds the interpreter, so it is short.
_PIECE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+){0,9999}+', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = {ord("["): 1, ord("]"): -1}.__getitem__

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], raw: bytes | bytearray) -> M:
    """Validate a JSON body. Raises InvalidRequest or UnsupportedParameter with ``param``."""
    check_shape(raw)
    try:
        body = model.model_validate_json(raw)
    except ValidationError as error:
        if error.error_count() > _MAX_ERRORS:
            wrong = error.error_count()
            raise InvalidRequest(f"The body is not valid: {wrong} of its values are.") from None
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = param_path(first["loc"])
        if first["type"] == "extra_forbidden":
            hint = _nearest(model, first["loc"])
            raise UnsupportedParameter(
                f"'{param}' is unknown or not supported{hint}", param=param
            ) from None
        raise _refusal(first["type"], param, first["msg"]) from None
    _check_numbers(raw)
    return body


def _check_numbers(raw: bytes | bytearray) -> None:
    """Refuse NaN and Infinity, which fields of any value let pass. Raises InvalidRequest."""
    if b"NaN" in raw or b"Infinity" in raw:
        structure = _structure(raw) if len(raw) > LARGE else _STRING.sub(b"", raw)
        if b"NaN" in structure or b"Infinity" in structure:
            raise InvalidRequest("The body holds NaN or Infinity, which are no JSON numbers.")


def _nearest(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """Return the end of a sentence: the known field that an unknown one may be meant for."""
    shape: type[BaseModel] | None = model
    for step in loc[:-1]:
        fields = {} if shape is None else shape.model_fields
        shape = _section(fields[step].annotation) if step in fields else None
    if shape is None:
        return "."
    near = get_close_matches(str(loc[-1])[:_MAX_PARAM], shape.model_fields, n=1)
    return f"; did you mean '{near[0]}'?" if near else "."


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a field that may hold one."""
    shapes = get_args(annotation) or (annotation,)
    found = (each for each in shapes if isinstance(each, type) and issubclass(each, BaseModel))
    return next(found, None)


def is_large(raw: bytes | bytearray) -> bool:
    """Return whether checking a body may take milliseconds; strings count as what they hold."""
    return len(raw) > LARGE or (
        len(raw) > _MANY and raw.count(b",") + raw.count(b":") + raw.count(b"[") > _MANY
    )


def _refusal(kind: str, param: str | None, message: str) -> InvalidRequest:
    if kind == "unsupported":
        return UnsupportedParameter(f"'{param}' {message}.", param=param)
    if param is None:
        return InvalidRequest(f"The body is not valid. {message}.")
    return InvalidRequest(f"'{param}' is not valid. {message}.", param=param)


def param_path(loc: tuple[int | str, ...]) -> str | None:
    """Join a path: ``("messages", 0, "content")`` becomes ``messages[0].content``."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":
            path += f".{step}" if path else step
    return path[:_MAX_PARAM] or None


def check_shape(raw: bytes | bytearray) -> None:
    """Refuse JSON that is nested deeper than 64, or has too many elements or members of objects.

    It costs next to nothing for ordinary bodies. Raises InvalidRequest.
    """
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets <= MAX_DEPTH and (
        len(raw) <= MAX_MEMBERS
        or (raw.count(b":") <= MAX_MEMBERS and brackets + raw.count(b",") <= MAX_ELEMENTS)
    ):
        return
    structure = _structure(raw) if len(raw) > LARGE else _STRING.sub(b"", raw)
    nested = structure.translate(_BRACKETS, _NOT_BRACKETS)
    opened = nested.count(b"[")
    if opened + structure.count(b",") > MAX_ELEMENTS:
        raise _too_many()
    if structure.count(b":") > MAX_MEMBERS:
        raise InvalidRequest(f"The body's objects have more than {MAX_MEMBERS} members.")
    if len(nested) > 2 * opened:
        return  # more are closed than opened: the parser says where
    if max(accumulate(map(_STEP, nested)), default=0) > MAX_DEPTH:
        raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH}.")


def _structure(raw: bytes | bytearray) -> bytes:
    """Return what stands outside of strings, in steps that other threads can come between."""
    parts: list[bytes | bytearray] = []
    position = 0
    while (opened := raw.find(b'"', position)) >= 0:
        parts.append(raw[position:opened])
        if len(parts) > 2 * MAX_ELEMENTS + 2:  # names and values: more than so many elements
            raise _too_many()
        position = _string_end(raw, opened + 1)
    return b"".join([*parts, raw[position:]])


def _string_end(raw: bytes | bytearray, position: int) -> int:
    """Return where what follows a string begins; the end if the string has none."""
    while True:
        found = _PIECE.match(raw, position)
        end = found.end() if found else len(raw)
        if end == position or raw[end : end + 1] == b'"':
            return end + 1
        position = end


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"The body has more than {MAX_ELEMENTS} elements.")
