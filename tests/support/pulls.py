"""Pulls from the hub of tests, and what they report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from model_store.hub.pull import HubOptions, PullRequest, pull
from model_store.manifest import Manifest
from model_store.store import ModelStore
from tests.support.hub import REPO, FakeHub

TOKEN = "hf_verysecrettoken"
WEIGHTS = "model.safetensors"
#: a process that pulls: store, repository, address of the hub
PULLER = (
    "import sys; from pathlib import Path; from model_store.hub.pull import *\n"
    "from model_store.store import ModelStore\n"
    "request = PullRequest(repo=sys.argv[2], hub=HubOptions(sys.argv[3]))\n"
    "pull(ModelStore(Path(sys.argv[1])), request)"
)


class Told:
    """Checks that a Progress is called as its protocol promises."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def plan(self, files: Mapping[str, int], done: Mapping[str, int]) -> None:
        assert not self.sizes, "planned twice"
        self.sizes, self.before, self.done = dict(files), dict(done), dict(done)

    def advance(self, path: str, bytes_done: int) -> None:
        assert self.done[path] <= bytes_done <= self.sizes[path], "back, or beyond the file"
        self.done[path] = bytes_done


def request_of(hub: FakeHub, repo: str = REPO, **more: Any) -> PullRequest:
    """Return a request; what HubOptions takes may be among the named arguments."""
    options = _taken(HubOptions, more)
    return PullRequest(repo=repo, hub=HubOptions(**{"endpoint": hub.url, **options}), **more)


def pulled(store: ModelStore, hub: FakeHub, repo: str = REPO, **more: Any) -> Manifest:
    """Pull a model; the named arguments are those of HubOptions and PullRequest."""
    fields = {**_taken(HubOptions, more), **_taken(PullRequest, more)}
    return pull(store, request_of(hub, repo, **fields), **more)


def _taken(kind: Any, more: dict[str, Any]) -> dict[str, Any]:
    return {name: more.pop(name) for name in list(more) if name in kind.__dataclass_fields__}


def refused(store: ModelStore, hub: FakeHub, kind: type[Exception], **more: Any) -> str:
    """Return the message of a pull that fails; nothing secret is in it, and no model made."""
    with pytest.raises(kind) as caught:
        pulled(store, hub, **more)
    message = str(caught.value)
    assert TOKEN not in message
    assert "/store" not in message
    assert store.names() == []
    return message


def after_some(store: ModelStore, count: int = 500_000) -> Callable[[], bool]:
    """Cancel when so many bytes of the weights have come."""
    return lambda: part_bytes(store) > count


def part_bytes(store: ModelStore) -> int:
    """Return the bytes that unfinished pulls have of unfinished files."""
    found = store.partial.glob("pull-*/*.part")
    return sum(size_of(path) for path in found)


def kept_bytes(store: ModelStore) -> int:
    """Return the bytes that unfinished pulls have kept, in whole files and in parts."""
    found = (path for path in store.partial.rglob("*") if path.is_file())
    return sum(size_of(path) for path in found)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
