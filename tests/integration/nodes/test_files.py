"""Files of jobs go to the node that runs them, and what was made comes back, over real HTTP."""

import base64
import io
from pathlib import Path

import httpx
import psutil
from PIL import Image

from bitinglip.home import Home
from model_store.demo import make_demo_models
from model_store.store import ModelStore
from tests.support.api_server import ADMIN, serve
from tests.support.cluster import SECRET, StaticAgents, agents
from tests.support.wait import eventually

ASKED = {"model": "demo-image", "prompt": "a red fox", "width": 64, "height": 64, "steps": 2}


def picture() -> str:
    kept = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(kept, "PNG")
    return base64.b64encode(kept.getvalue()).decode()


def test_files_of_requests_reach_a_node_and_its_images_come_back(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    make_demo_models(ModelStore(home.models), ["demo-image"])
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    workers = {"launcher": "ray", "threads": 1, "ray": {"secret_file": str(secret)}}
    with (
        agents(home.root, "n1", fake=(), spare=True) as there,
        serve(tmp_path, agents=StaticAgents(there), workers=workers) as server,
        httpx.Client(base_url=server.url, headers=server.headers(ADMIN), timeout=120) as client,
    ):
        devices = client.get("/api/v1/cluster/status").json()["devices"]
        assert [each["id"] for each in devices] == ["n1:cpu"]
        body = {**ASKED, "image": picture(), "strength": 0.5}
        answer = client.post("/api/v1/inference/image-generation", json=body)
        assert answer.status_code == 200, answer.text
        made = base64.b64decode(answer.json()["result"]["images"][0]["b64"])
        assert Image.open(io.BytesIO(made)).size == (64, 64)
        (inputs,) = (home.root / "on-n1").glob("bitinglip-agent-*/inputs")
        eventually(lambda: list(inputs.iterdir()) == [])  # removed with the job
        found = {each["model"]: each for each in client.get("/api/v1/workers").json()["data"]}
        pids = [each.pid for each in psutil.Process(there["n1"].process.pid).children()]
        assert {each["pid"] for each in found.values()} < {*pids}, "and the spare is one more"
        assert {each["node"] for each in found.values()} == {"n1"}
        (node,) = client.get("/api/v1/cluster/status").json()["nodes"]
        assert (node["id"], node["state"], node["workers"]) == ("n1", "well", 1)
        assert found["demo-image"]["ram_bytes"] > 0
