"""Lists the routes from the application's own description."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import BaseRoute

from bitinglip.api.auth import declared_scope
from bitinglip.app import build
from bitinglip.home import Home
from bitinglip.settings import Settings
from scripts.reference.page import table

HEAD = """\
# HTTP

A key goes into `Authorization: Bearer KEY` or `X-API-Key: KEY`. `/docs` of a running server shows
the fields of every body, and `/openapi.json` describes them. `HEAD` answers wherever `GET` does.
"""
_GROUPS = (
    ("OpenAI and Anthropic", ("/v1",)),
    ("Native", ("/api/v1",)),
    ("Operations", ("",)),
)
Row = tuple[str, str, str, str]


def page() -> str:
    rows: dict[str, list[Row]] = {name: [] for name, _ in _GROUPS}
    for path, row in _rows():
        name = next(name for name, starts in _GROUPS if path.startswith(starts))
        rows[name].append(row)
    head = ("method", "route", "scope", "what it does")
    return HEAD + "".join(f"\n## {name}\n\n{table(head, found)}" for name, found in rows.items())


def _rows() -> Iterator[tuple[str, Row]]:
    with tempfile.TemporaryDirectory() as folder:
        app = build(Settings(), Home(Path(folder)))
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            text = route.summary or (route.description or "").split("\n\n")[0]
            methods = ", ".join(sorted(route.methods or ()))
            yield route.path, (methods, f"`{route.path}`", _scope(route), _sentence(route, text))
        elif isinstance(route, APIWebSocketRoute):
            text = (route.endpoint.__doc__ or "").split("\n\n")[0]
            yield route.path, ("WS", f"`{route.path}`", _scope(route), text)


def _scope(route: BaseRoute) -> str:
    scope: Any = declared_scope(route)
    return "none" if scope is None else str(scope)


def _sentence(route: APIRoute, text: str) -> str:
    return (route.endpoint.__doc__ or text).strip().split("\n\n")[0]
