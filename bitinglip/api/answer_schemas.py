"""Holds parts of JSON schemas, and of OpenAPI's responses, for the tables of answers."""

from typing import Any

Schema = dict[str, Any]
Content = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
ANY_OBJECT: Schema = {"type": "object"}
_BINARY: Schema = {"type": "string", "format": "binary"}


def object_of(**properties: Schema) -> Schema:
    """Return the schema of an object that has all of these properties, and may have more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def word(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def page_of(row: Schema) -> Content:
    """Return what a native list holds."""
    return json_of(object_of(data=list_of(row), total=WHOLE, limit=WHOLE, offset=WHOLE))


def openai_list_of(row: Schema) -> Content:
    """Return what a list of OpenAI's holds, which is asked for in pages by ids."""
    first_last = {"first_id": or_null(TEXT), "last_id": or_null(TEXT)}
    return json_of(object_of(object=word("list"), data=list_of(row), has_more=FLAG, **first_last))


def json_of(schema: Schema, *, stream: bool = False) -> Content:
    """Return JSON; with ``stream``, or events where the request asks for them."""
    return {"application/json": {"schema": schema}, **(EVENTS if stream else {})}


def files_of(*media_types: str) -> Content:
    return {each: {"schema": _BINARY} for each in media_types}


EVENTS: Content = {"text/event-stream": {"schema": TEXT}}
PLAIN: Content = {"text/plain": {"schema": TEXT}}
