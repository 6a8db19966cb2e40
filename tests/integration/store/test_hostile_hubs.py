"""Pulls from hubs that mean harm: answers without an end, names that are none, sizes that lie."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.errors import DownloadError
from model_store.store import ModelStore
from tests.support.hub import REPO, FakeHub, fake_hub, serve
from tests.support.model_folders import llama
from tests.support.pulls import pulled, refused


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(llama(tmp_path / "origin")) as hub:
        yield hub


@pytest.fixture
def mirror(hub: FakeHub) -> Iterator[FakeHub]:
    with serve(FakeHub(hub.files)) as mirror:
        yield mirror


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_hub_whose_listing_has_no_end_is_left(
    store: ModelStore, hub: FakeHub, mirror: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.memory._MORE_BYTES", 200 << 20)
    hub.endless = "/api/"
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    assert "has no end" in refused(store, hub, DownloadError)
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert pulled(store, hub, mirrors=(mirror.url,)).name == REPO


def test_redirect_whose_body_has_no_end_is_followed(store: ModelStore, hub: FakeHub) -> None:
    hub.endless = f"/{REPO}/"
    assert pulled(store, hub).name == REPO


@pytest.mark.parametrize("name", ["https://x/\x1b[2J", "../x", "x" * 1_000_000])
def test_hub_that_gives_a_repository_no_name_is_left(
    store: ModelStore, hub: FakeHub, name: str
) -> None:
    hub.told_name = name
    message = refused(store, hub, DownloadError)
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize("name", [None, 5, ["a"]])
def test_hub_that_lists_files_without_a_name_is_left(
    store: ModelStore, hub: FakeHub, name: object
) -> None:
    hub.listing = [*hub.siblings(), {"rfilename": name, "size": 1, "blobId": "a" * 40}]
    assert "without a name" in refused(store, hub, DownloadError)
