"""Parsing makes bytes a checked request, or raises an error that names the field, not its value."""

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bitinglip.errors import InvalidRequest, UnsupportedParameter

MAX_DEPTH = 64
_MAX_PARAM = 128
_UNSUPPORTED = frozenset({"extra_forbidden", "unsupported"})
#: Possessive and with an optional end, so that it is linear whatever it is given.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ROUND = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], raw: bytes) -> M:
    """Validate a JSON body. Raises InvalidRequest or UnsupportedParameter with ``param``."""
    check_depth(raw)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _refusal(first["type"], param_path(first["loc"]), first["msg"]) from None


def _refusal(kind: str, param: str | None, message: str) -> InvalidRequest:
    if kind in _UNSUPPORTED:
        reason = "is unknown or not supported" if kind == "extra_forbidden" else message
        return UnsupportedParameter(f"'{param}' {reason}.", param=param)
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


def check_depth(raw: bytes) -> None:
    """Refuse JSON that is nested deeper than 64; ordinary bodies take two counts."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", raw).translate(_ROUND, _NOT_BRACKETS)
    if not brackets.startswith(b"[" * (MAX_DEPTH + 1)):
        for _ in range(MAX_DEPTH):
            shorter = brackets.replace(b"[]", b"")
            if len(shorter) == len(brackets):
                break
            brackets = shorter
    if b"[]" in brackets or brackets.startswith(b"[" * (MAX_DEPTH + 1)):
        raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH}.")
