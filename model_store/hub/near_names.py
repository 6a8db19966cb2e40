"""Finds names like one that the hub does not have: short names, the store's models, the hub's."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from urllib.parse import urlencode

from model_store.errors import BadName, DownloadError
from model_store.hub.aliases import aliases
from model_store.hub.connections import Broken, Connections
from model_store.names import check_name
from model_store.store import ModelStore

_MOST = 3  #: that are told
_LIKE = 0.75  #: from 0, nothing in common, to 1, the same but for case
_MOST_BYTES = 2_000_000  #: of the hub's answer
_FOUND = 50  #: repositories that the hub is asked for


def near_names(asked: str, store: ModelStore, address: str, connections: Connections) -> list[str]:
    """Return texts that name what may have been meant, the likeliest first.

    Asks the hub's search without a token, and does without where that does not answer. Raises
    PullCancelled.
    """
    told = {name: f"{name}, which is in the store" for name in store.names_told}
    with suppress(BadName):  # of a damaged list; what is asked for is another name
        for name, repo in aliases(store.root.parent).items():  # the home's
            told[name] = f"{name}, which stands for {repo}"
            told.setdefault(repo, told[name])
    for name in _on_the_hub(asked, address, connections):
        told.setdefault(name, name)
    return list(dict.fromkeys(told[name] for name in like(asked, told)))[:_MOST]


def like(asked: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most like one, the likeliest first."""
    scores = sorted(((_likeness(asked, name), name) for name in names), reverse=True)
    return [name for score, name in scores if score >= _LIKE]


def _likeness(asked: str, name: str) -> float:
    """Compare whole names, and names without their owners, of which people leave out or mistake
    the first."""
    one, other = asked.casefold(), name.casefold()
    last = _ratio(one.rpartition("/")[2], other.rpartition("/")[2])
    return max(_ratio(one, other), 0.95 * last)


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _on_the_hub(asked: str, address: str, connections: Connections) -> Iterator[str]:
    """Yield what the hub's search finds for the name, and what its owner has."""
    owner, _, name = asked.rpartition("/")
    queries = [{"search": name}, *([{"author": owner}] if owner else [])]
    for query in queries:
        url = f"{address}/api/models?{urlencode({**query, 'limit': _FOUND})}"
        try:
            with connections.stream(url, {"Accept": "application/json"}) as answer:
                got = b""
                for piece in answer.pieces() if answer.is_good else ():
                    got += piece
                    if len(got) > _MOST_BYTES:
                        return
            yield from _names(got)
        except (Broken, DownloadError):
            return


def _names(answer: bytes) -> Iterator[str]:
    with suppress(ValueError, RecursionError):
        found = json.loads(answer)
        for each in found if isinstance(found, list) else ():
            name = each.get("id") if isinstance(each, dict) else None
            if isinstance(name, str):
                with suppress(BadName):
                    yield check_name(name)
