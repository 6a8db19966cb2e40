"""A server whose nodes share no files with it: what models need is copied there, over real HTTP."""

from pathlib import Path

import httpx
import pytest

from bitinglip.home import Home
from model_store.demo import make_demo_models
from model_store.store import ModelStore
from tests.integration.server.test_adapters import import_model, said
from tests.support.api_server import ADMIN, serve
from tests.support.cluster import SECRET, StaticAgents, agents
from tests.support.lora_files import write_text_lora
from tests.support.wait import eventually
from workers.nodes import cluster

TUNED = "org/tuned.v1"


def test_model_and_its_lora_are_copied_to_a_node_and_go_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_COLLECT_SECONDS", 0.1)
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    home, copies = Home(tmp_path / "home"), tmp_path / "copies"
    home.create()
    make_demo_models(ModelStore(home.models), ["demo-text"])
    ray = {"secret_file": str(secret), "models": "pull"}
    config = {"store": str(copies), "hidden": (str(home.root),), "fake": ()}
    with (
        agents(home.root, "n1", **config) as there,
        serve(
            tmp_path, agents=StaticAgents(there), workers={"launcher": "ray", "ray": ray}
        ) as server,
        httpx.Client(base_url=server.url, headers=server.headers(ADMIN), timeout=300) as client,
    ):
        plain = said(client, "demo-text")
        base = home.models / "demo-text/files"
        lora = write_text_lora(base, tmp_path / "lora", named="demo-text")
        import_model(client, lora, TUNED)
        assert said(client, TUNED) != plain, "the worker that runs got it"
        assert said(client, "demo-text") == plain
        blobs = {each.name for each in copies.glob("blobs/*/*")}
        listed = {each.sha256 for each in server.services.store.get("demo-text").files}
        assert listed < blobs
        (node,) = client.get("/api/v1/cluster/status").json()["nodes"]
        assert node["model_bytes"] >= 0
        assert client.delete(f"/api/v1/models/{TUNED}").status_code == 204
        client.post("/api/v1/models/demo-text/unload")
        eventually(lambda: {each.name for each in copies.glob("blobs/*/*")} == listed)
        assert client.get("/metrics").text.count("bitinglip_node_model_bytes{") == 1
        assert client.delete("/api/v1/models/demo-text").status_code == 204
        eventually(lambda: not list(copies.glob("blobs/*/*")))
