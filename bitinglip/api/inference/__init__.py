"""Holds the routes of inference: a module for each kind, and for each further
protocol of clients."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from fastapi import APIRouter


def routers() -> Iterator[APIRouter]:
    """Yield the routers of all modules here: a module of a new kind is mounted by being there."""
    for found in iter_modules(__path__, f"{__name__}."):
        yield from (
            each for each in vars(import_module(found.name)).values() if isinstance(each, APIRouter)
        )
