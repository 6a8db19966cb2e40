"""Completes names of models and scopes in the shell; says nothing where it cannot find any."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cli.context import CliContext


def models(what: str = "") -> Callable[[typer.Context, str], list[str]]:
    """Return the completion of models of this type or capability; of all if there is none."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from cli.context import CliContext

        place = CliContext.of(ctx.params.get("home"), ctx.params.get("config"))
        return [name for name in _names(place, what) if name.startswith(incomplete)]

    return complete


def scopes(incomplete: str) -> list[str]:
    from bitinglip.access.scopes import Scope

    return [scope.value for scope in Scope if scope.startswith(incomplete)]


def _names(place: "CliContext", what: str) -> Iterator[str]:
    for row in _rows(place):
        if what in ("", row["type"], *row["capabilities"]):
            yield row["model_id"]


def _rows(place: "CliContext") -> list[dict[str, Any]]:
    """Look into the home, which is quick; another machine's server is asked."""
    from cli import offline

    try:
        if os.environ.get("BITINGLIP_URL") and (server := place.server()) is not None:
            return server.list("/api/v1/models")
        return offline.models(place.home)
    except Exception:  # noqa: BLE001  a message would stand in the line that the user types
        return []
