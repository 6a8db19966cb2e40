"""Multipart forms: files, and fields that are checked as those of a JSON body are."""

from collections.abc import Collection, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from bitinglip.api.body import media_type_of, parsed
from bitinglip.errors import InvalidRequest, UnsupportedMediaType, UnsupportedParameter

FORM = "multipart/form-data"
_MOST_FIELDS = 64
_MOST_FILES = 16
_LONGEST_FIELD = 64 * 1024
_UTF8 = (b"utf-8", b"utf8")
_WORDS = {"true": True, "false": False}

M = TypeVar("M", bound=BaseModel)
Uploaded = Mapping[str, list[bytes]]


async def read_form(request: Request, model: type[M], names: Collection[str]) -> tuple[M, Uploaded]:
    """Read and check a form: its fields, and its files of those names.

    Raises InvalidRequest, UnsupportedParameter or UnsupportedMediaType.
    """
    _check_type(request)
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    try:
        async with request.form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD
        ) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    _check_name(name, names)
                    files.setdefault(name, []).append(await value.read())
                elif name.endswith("[]"):
                    fields.setdefault(name.removesuffix("[]"), []).append(value)
                elif name in fields:
                    raise InvalidRequest(f"'{name[:64]}' is given twice.", param=name[:64])
                else:
                    fields[name] = _typed(model, name, value)
    except MultiPartException:
        raise InvalidRequest("The form is not valid, or has too many parts.") from None
    for name in names:
        if name in fields:
            raise InvalidRequest(f"'{name}' must be a file.", param=name)
    return await parsed(model, msgspec.json.encode(fields)), files


def single_file(files: Uploaded) -> bytes:
    """Return the only file under ``file``. Raises InvalidRequest if there is none, or another."""
    found = files.get("file", [])
    if len(found) != 1:
        what = "is missing" if not found else "may be one only"
        raise InvalidRequest(f"'file' {what}.", param="file")
    return found[0]


def _check_type(request: Request) -> None:
    """Refuse a body that is no form, or is one in another encoding than UTF-8.

    The library decodes by any codec of the interpreter that the client names; some take quadratic
    time, and some make strings that cannot be encoded again.
    """
    if media_type_of(request) != FORM:
        raise UnsupportedMediaType(f"The request's body must be {FORM}.")
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _UTF8:
        raise UnsupportedMediaType("A form must be in UTF-8: leave charset out.")


def _check_name(name: str, names: Collection[str]) -> None:
    if name not in names:
        shown = name[:64]
        raise UnsupportedParameter(f"'{shown}' is no file of this route.", param=shown)


def _typed(model: type[BaseModel], name: str, text: str) -> Any:
    """Convert a form's text to the type that the field has in JSON; left as it is if it cannot."""
    kinds = _kinds(model.model_fields[name].annotation) if name in model.model_fields else set()
    if bool in kinds:
        return _WORDS.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                return text
    return text


def _kinds(annotation: Any) -> set[Any]:
    """List the plain types that a field may have."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for each in get_args(annotation) for kind in _kinds(each)}
    return {annotation}
