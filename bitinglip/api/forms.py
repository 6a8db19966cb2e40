"""Reads multipart forms: files, and fields that are checked as those of a JSON body are."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from bitinglip.api.auth import caller_of, confirm_caller
from bitinglip.api.body import input_memory, media_type_of, next_part, note_ignored, parsed
from bitinglip.api.multipart import FormParser
from bitinglip.api.request_context import context_of
from bitinglip.api.services import services_of
from bitinglip.errors import InvalidRequest, UnsupportedMediaType
from bitinglip.results.uploads import ReceivedFile

FORM = "multipart/form-data"
#: of a list, as clients name it: ``name[]`` or ``name[0]``
_ELEMENT = re.compile(r"\[[0-9]{0,4}\]\Z", re.ASCII)
_UTF8 = (b"utf-8", b"utf8")
_WORDS = {"true": True, "false": False}

M = TypeVar("M", bound=BaseModel)
Uploaded = Mapping[str, list[ReceivedFile]]


async def read_form(request: Request, model: type[M], names: Collection[str]) -> tuple[M, Uploaded]:
    """Read and check a form: its fields, and its files of those names.

    The files are removed when the request has ended, but for those that a job has taken.
    Raises InvalidRequest, UnsupportedParameter, UnsupportedMediaType, QueueFull, DiskFull,
    ClientDisconnect, or what ``confirm_caller`` raises.
    """
    boundary = _boundary(request)
    incoming = services_of(request).uploads.receive(caller_of(request).key_id)
    context_of(request.scope).release = incoming.close
    with input_memory(request) as grow:
        form = FormParser(boundary, names, incoming, grow)
        more = True
        while more:
            part, more = await next_part(request)
            await form.feed(part)
        form.finish()
        confirm_caller(request)
        fields = _values(model, form.fields, names)
        found = await parsed(model, msgspec.json.encode(fields))
        return note_ignored(request, *found), form.files


def _values(
    model: type[BaseModel], given: Iterable[tuple[str, str]], names: Collection[str]
) -> dict[str, Any]:
    """Return the fields as they would be in JSON. Raises InvalidRequest."""
    fields: dict[str, Any] = {}
    for name, value in given:
        shown = name[:64]
        if name in names:
            raise InvalidRequest(f"'{shown}' must be a file.", param=shown)
        whole = _ELEMENT.sub("", name)
        if whole != name or _is_list(model, name):
            listed = fields.setdefault(whole, [])
            if not isinstance(listed, list):
                raise InvalidRequest(f"'{shown}' is given twice.", param=shown)
            listed.append(value)
        elif name in fields:
            raise InvalidRequest(f"'{shown}' is given twice.", param=shown)
        else:
            fields[name] = _typed(model, name, value)
    return fields


def _is_list(model: type[BaseModel], name: str) -> bool:
    """Tell whether a field holds a list: its elements may come without brackets, too."""
    field = model.model_fields.get(name)
    return field is not None and any(get_origin(kind) is list for kind in _kinds(field.annotation))


def single_file(files: Uploaded) -> ReceivedFile:
    """Return the only file under ``file``. Raises InvalidRequest if there is none, or another."""
    found = files.get("file", [])
    if len(found) != 1:
        what = "is missing" if not found else "may be one only"
        raise InvalidRequest(f"'file' {what}.", param="file")
    return found[0]


def _boundary(request: Request) -> bytes:
    """Return what separates the parts; refuse what is no form, or not in UTF-8.

    A client that could name any codec of the interpreter would find some that take quadratic time.
    """
    if media_type_of(request) != FORM:
        raise UnsupportedMediaType(f"The request's body must be {FORM}.")
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _UTF8:
        raise UnsupportedMediaType("A form must be in UTF-8: leave charset out.")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("The form's Content-Type names no boundary.")
    return boundary


def _typed(model: type[BaseModel], name: str, text: str) -> Any:
    """Convert a form's text to the type that the field has in JSON; left as it is if it cannot."""
    kinds = _kinds(model.model_fields[name].annotation) if name in model.model_fields else set()
    if bool in kinds:
        return _WORDS.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            try:
                number = kind(text)
            except ValueError:
                return text
            return number if math.isfinite(number) else text
    return text


def _kinds(annotation: Any) -> set[Any]:
    """List the plain types that a field may have."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for each in get_args(annotation) for kind in _kinds(each)}
    return {annotation}
