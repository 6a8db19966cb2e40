"""Files of jobs go to the node that runs them, and what was made comes back, over real HTTP."""

import base64
import io
from pathlib import Path

import httpx
import psutil
from PIL import Image

from tests.support import node_workers
from tests.support.api_server import ADMIN, serve
from tests.support.cluster import SECRET, StaticAgents, agents
from tests.support.hostile_workers import entry
from tests.support.wait import eventually


def picture() -> bytes:
    kept = io.BytesIO()
    Image.effect_noise((512, 512), 90).save(kept, "PNG")  # of several pieces
    return kept.getvalue()


def test_files_of_requests_reach_a_node_and_its_images_come_back(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    workers = {"launcher": "ray", "ray": {"secret_file": str(secret)}}
    home, sent = tmp_path / "home", picture()
    asked = {"model": "painter", "prompt": "a fox", "width": 512, "height": 512}
    with (
        agents(home, "n1", fake=(), entry=entry(node_workers.paints)) as there,
        serve(tmp_path, agents=StaticAgents(there), workers=workers) as server,
        httpx.Client(base_url=server.url, headers=server.headers(ADMIN), timeout=60) as client,
    ):
        body = {**asked, "image": base64.b64encode(sent).decode(), "strength": 0.5}
        answer = client.post("/api/v1/inference/image-generation", json=body)
        assert answer.status_code == 200, answer.text
        assert base64.b64decode(answer.json()["result"]["images"][0]["b64"]) == sent
        (inputs,) = (home / "on-n1").glob("bitinglip-agent-*/inputs")
        eventually(lambda: list(inputs.iterdir()) == [])  # removed with the job
        status = client.get("/api/v1/cluster/status").json()
        assert [each["id"] for each in status["devices"]] == ["n1:cpu"]
        (node,) = status["nodes"]
        assert (node["id"], node["state"], node["workers"]) == ("n1", "well", 1)
        (worker,) = status["workers"]
        assert worker["node"] == "n1"
        (process,) = psutil.Process(there["n1"].process.pid).children()
        assert worker["pid"] == process.pid
        work = home / "work"
    eventually(lambda: list(work.iterdir()) == [])
