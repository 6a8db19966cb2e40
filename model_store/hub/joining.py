"""Pulls after another process that pulls the same: one fetches, and the others join it."""

import time
from collections.abc import Callable
from typing import TypeVar

from model_store.errors import NameTaken, PullRunning
from model_store.hub.request import PullRequest
from model_store.manifest import HUB, Manifest
from model_store.store import ModelStore

T = TypeVar("T")
_WAIT_SECONDS = 0.5  #: between two looks at whether the other pull has ended


def alone(work: Callable[[], T], waits: Callable[[], None]) -> T:
    """Do work that pulls, after any other process that pulls the same repository.

    ``waits`` is called once if it has to wait.
    """
    told = False
    while True:
        try:
            return work()
        except PullRunning:
            if not told:
                waits()
            told = True
            time.sleep(_WAIT_SECONDS)


def pull_or_join(
    store: ModelStore,
    request: PullRequest,
    pull: Callable[[], Manifest],
    waits: Callable[[], None],
) -> Manifest:
    """Pull a new model, unless another process, which was waited for, has brought just this one.

    ``pull`` does it. Raises what it raises, but PullRunning.
    """
    before = set(store.names())
    try:
        return alone(pull, waits)
    except NameTaken:
        found = store.listing.find(request.model)
        same = found is not None and found.source == f"{HUB}{request.repo}" and not request.include
        if found is None or not same or request.model in before:
            raise
        return found
