"""Tests that a repository which the hub does not have is answered with names like it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.errors import NotFoundOnHub
from model_store.store import ModelStore
from tests.support.hub import FakeHub, serve
from tests.support.pulls import TOKEN, pulled, refused


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({})) as hub:
        yield hub


def test_repository_that_is_not_there_is_answered_with_names_like_it(
    store: ModelStore, hub: FakeHub, source: Path
) -> None:
    said = refused(store, hub, NotFoundOnHub, repo="org/modle")
    assert "Names like it" not in said, "there is none"
    hub.found = ["org/model", "other/thing", "../evil", 7]
    assert "org/model." in refused(store, hub, NotFoundOnHub, repo="org/modle", token=TOKEN)
    searches = [(path, token) for path, token in hub.requests if "?search=modle" in path]
    assert {token for _, token in searches} == {""}, "what only the token's owner sees is not told"
    said = refused(store, hub, NotFoundOnHub, repo="lama-2-7b")
    assert "llama-2-7b, which stands for meta-llama/Llama-2-7b-hf" in said
    store.import_folder(source, "own/bark-smal")
    with pytest.raises(NotFoundOnHub, match="own/bark-smal, which is in the store; bark-small, "):
        pulled(store, hub, repo="own/bark-smol")
    narrow = ModelStore(store.root, bases=["other"])
    with pytest.raises(NotFoundOnHub) as caught:
        pulled(narrow, hub, repo="own/bark-smol")
    assert "in the store" not in caught.value.message
