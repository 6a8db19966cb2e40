"""What /docs and /openapi.json say beyond what FastAPI finds out by itself."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from bitinglip.wire.schema import schema_of

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "type", "param", "details", "request_id", "timestamp"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "details": {"type": "object"},
                "request_id": {"type": "string"},
                "timestamp": {"type": "string", "format": "date-time"},
            },
        }
    },
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """For ``openapi_extra`` of a route that reads its body itself."""
    content = {"application/json": {"schema": schema_of(model)}}
    return {"requestBody": {"required": True, "content": content}}


def form_body(model: type[BaseModel], *files: str) -> dict[str, Any]:
    """The same for a multipart form with files of these names beside the model's fields."""
    schema = schema_of(model)
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def list_query(*filters: str) -> dict[str, Any]:
    """For ``openapi_extra`` of a route that answers with a page of a list."""
    numbers = [
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "default": 50},
        },
        {
            "name": "offset",
            "in": "query",
            "schema": {"type": "integer", "minimum": 0, "default": 0},
        },
    ]
    words = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in filters]
    return {"parameters": [*numbers, *words]}


def install(app: FastAPI) -> None:
    """Let the schema name the ways to authenticate; it is built once, when first asked for."""
    app.openapi = _builder(app)  # type: ignore[method-assign]


def _builder(app: FastAPI) -> Callable[[], dict[str, Any]]:
    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema["components"] = {"securitySchemes": _SCHEMES, "schemas": {"Error": _ERROR}}
            _name_errors(schema["paths"])
            schema["security"] = [{"bearer": []}, {"api_key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    return build


def _name_errors(paths: dict[str, dict[str, Any]]) -> None:
    """Every failure is the error object; FastAPI's own 422 does not happen here."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error", "content": content}
