"""Scopes say what a key may do."""

from collections.abc import Iterable
from enum import StrEnum

from bitinglip.errors import InvalidRequest


class Scope(StrEnum):
    MODELS_READ = "models:read"
    TEXT = "inference:text"
    IMAGE = "inference:image"
    AUDIO = "inference:audio"
    CLUSTER_READ = "cluster:read"
    CLUSTER_WRITE = "cluster:write"
    ADMIN = "admin"  #: implies all others

    __hash__ = str.__hash__  # in C; looked up at each request


#: each allows one kind of work
INFERENCE = (Scope.TEXT, Scope.IMAGE, Scope.AUDIO)
#: of a key that was made without naming any: using and looking, not changing
DEFAULT = frozenset(Scope) - {Scope.ADMIN, Scope.CLUSTER_WRITE}


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Parse names of scopes. Raises an error with the list of all for an unknown name, or none."""
    names = list(names)
    known = ", ".join(Scope)
    if not names:
        raise InvalidRequest(f"A key needs at least one scope: {known}.", param="scopes")
    for name in names:
        if name not in set(Scope):
            raise InvalidRequest(
                f"There is no scope {name[:50]!r}. Scopes are: {known}.",
                param="scopes",
                details={"scopes": [*Scope]},
            )
    return frozenset(Scope(name) for name in names)
