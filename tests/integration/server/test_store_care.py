"""The server keeps the store within its budget, and records when models are used."""

import os
import shutil
from pathlib import Path

import httpx
import pytest

from bitinglip.home import Home
from model_store.store import ModelStore
from tests.support.api_server import serve
from tests.support.http_client import NATIVE, PROMPT
from tests.support.model_folders import llama
from tests.support.wait import eventually


def test_server_keeps_the_disk_budget_and_records_the_use_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    home.create()
    store = ModelStore(home.models)
    for context, name in enumerate(("pinned", "demo", "old", "org/older"), 64):
        source = llama(tmp_path / "source", max_position_embeddings=context)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 12345)  # so that the store has its own copies
            store.import_folder(source, name)
        shutil.rmtree(source)
    store.set_care("pinned", pinned=True)
    with serve(tmp_path, store={"max_bytes": 1}, models={"demo": {"pin": True}}) as served:
        eventually(lambda: served.services.store.names() == ["demo", "pinned"])
        assert ModelStore(home.models).names() == ["demo", "pinned"]
        with httpx.Client(base_url=served.url, headers=served.headers("inference:text")) as client:
            assert client.post(NATIVE, json=PROMPT).status_code == 200
            assert client.post(NATIVE, json={**PROMPT, "model": "old"}).status_code == 404
        eventually(lambda: store.usage("demo").loads == 1)
    eventually(lambda: store.usage("demo").last_used_at is not None)
