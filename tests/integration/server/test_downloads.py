"""A download outlives its server, which is killed in the middle."""

import signal
from pathlib import Path

import httpx

from tests.support.hub import REPO, FakeHub
from tests.support.large_models import BLOCK, SIZE, WEIGHTS, hold, large_hub, let_go
from tests.support.server import Server, alive, descendants, running_server
from tests.support.wait import eventually


def test_download_goes_on_after_its_server_was_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with large_hub(tmp_path / "hub") as hub:
        hold(hub)
        sets = ("--set", f"hub.endpoint={hub.url}", "--set", "demo=never")
        with running_server(home, *sets) as server:
            location = begin_and_kill(server, hub)
        let_go(hub)
        with running_server(home, *sets) as server, server.client() as client:
            eventually(lambda: state(client, location) == "completed")
            assert client.get(f"/api/v1/models/{REPO}").json()["bytes"] > SIZE
        assert sum("Range" in headers for headers in hub.far_headers) == 1


def begin_and_kill(server: Server, hub: FakeHub) -> str:
    """Ask for a download, and kill the server while it runs; the processes that pull end, too."""
    with server.client() as client:
        answer = client.post("/api/v1/models/download", json={"model_name": REPO})
        eventually(lambda: hub.sent.get(WEIGHTS, 0) > BLOCK)
    children = descendants(server.process.pid)
    assert children
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(60)
    eventually(lambda: not any(alive(child) for child in children))
    return str(answer.headers["location"])


def state(client: httpx.Client, location: str) -> str:
    return str(client.get(location).json()["state"])
