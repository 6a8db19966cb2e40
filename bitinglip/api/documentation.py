"""Completes /openapi.json: bodies that handlers read themselves, errors, ways to log in."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from bitinglip.api.auth import declared_scope
from bitinglip.api.documented_answers import ANSWERS
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


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Describe a JSON body, for ``openapi_extra`` of a route that reads its body itself."""
    content = {"application/json": {"schema": schema_of(model)}}
    return {"requestBody": {"required": required, "content": content}}


def form_body(model: type[BaseModel], *files: str) -> dict[str, Any]:
    """Describe a multipart form: the model's fields and files of these names."""
    schema = schema_of(model)
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def list_query(*filters: str) -> dict[str, Any]:
    """Describe the query of a route that responds with a page of a list."""
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
    """Replace the application's schema by ours; it is built once, on the first request."""
    app.openapi = _builder(app)  # type: ignore[method-assign]  # FastAPI's own way


def _builder(app: FastAPI) -> Callable[[], dict[str, Any]]:
    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema["components"] = {"securitySchemes": _SCHEMES, "schemas": {"Error": _ERROR}}
            _name_errors(schema["paths"])
            _name_answers(schema["paths"])
            _open_public(schema["paths"], app)
            schema["security"] = [{"bearer": []}, {"api_key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    return build


def _name_errors(paths: dict[str, dict[str, Any]]) -> None:
    """Document the error object on every route; FastAPI's own 422 does not occur here."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error", "content": content}


def _name_answers(paths: dict[str, dict[str, Any]]) -> None:
    """Document what successful responses hold; the native API also answers with a task."""
    for name, content in ANSWERS.items():
        method, path = name.split(" ")
        responses = paths[path][method.lower()]["responses"]
        code = next(each for each in responses if each.startswith("2"))
        responses[code]["content"] = content
        if path.startswith("/api/v1/inference/"):
            accepted = {"application/json": content["application/json"]}
            responses["202"] = {"description": "Accepted as a task", "content": accepted}


def _open_public(paths: dict[str, dict[str, Any]], app: FastAPI) -> None:
    """Document which routes need no key."""
    for route in app.routes:
        path = getattr(route, "path_format", "")
        if path in paths and declared_scope(route) is None:
            for operation in paths[path].values():
                operation["security"] = []
