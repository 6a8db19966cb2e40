"""Finds the routes that are called without FastAPI's machinery, which is a third of a request.

A handler that takes the request alone and returns a response has nothing that FastAPI would fill
in. Its route stays registered, so the documentation shows it like all others.
"""

import inspect
from collections.abc import Iterable, Mapping

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match


def direct_routes(routes: Iterable[BaseRoute]) -> Mapping[tuple[str, str], APIRoute]:
    """Return these routes by method and path, as far as no route before them takes the path."""
    everything = list(routes)
    found: dict[tuple[str, str], APIRoute] = {}
    for route in everything:
        if not isinstance(route, APIRoute) or not _takes_request_only(route):
            continue
        for method in route.methods or ():
            if _first(everything, method, route.path) is route:
                found[method, route.path] = route
    return found


def _takes_request_only(route: APIRoute) -> bool:
    names = list(inspect.signature(route.endpoint).parameters)
    return names == ["request"] and not route.dependencies and "{" not in route.path


def _first(routes: Iterable[BaseRoute], method: str, path: str) -> BaseRoute | None:
    """Return the route that the router would choose."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return next((each for each in routes if each.matches(dict(scope))[0] is Match.FULL), None)
