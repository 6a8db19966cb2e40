"""Probes of the server's life are answered while the machine has more to do than it can."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from bitinglip.home import Home
from model_store.demo import make_demo_models
from model_store.store import ModelStore
from tests.support.awake import AwakeClock, Waits
from tests.support.server import Server, running_server

PROBE_SECONDS = 3.0  #: what orchestrators give a probe at least
LOADS = min(4, (os.cpu_count() or 1) + 1)  #: at once: more than the cores of a small machine


def test_liveness_is_answered_in_time_while_several_models_load(tmp_path: Path) -> None:
    """No load blocks the event loop: a machine that is busy may delay a probe, but not most."""
    home = Home(tmp_path / "home")
    home.create()
    store = ModelStore(home.models)
    make_demo_models(store, ["demo-text"])
    names = [f"text-{number}" for number in range(LOADS)]
    for name in names:
        store.import_folder(store.path("demo-text"), name)

    def load(server: Server, name: str) -> int:
        with server.client(timeout=120) as client:
            return client.post(f"/api/v1/models/{name}/load").status_code

    with (
        running_server(home.root) as server,
        AwakeClock() as clock,
        ThreadPoolExecutor(LOADS) as pool,
        httpx.Client(base_url=server.url, timeout=60) as probe,
    ):
        waits = Waits(clock)
        loads = [pool.submit(load, server, name) for name in names]
        while not all(each.done() for each in loads):
            waits.begin()
            assert probe.get("/livez").status_code == 200
            waits.end()
            time.sleep(0.02)
        assert [each.result() for each in loads] == [200] * LOADS
    assert len(waits) > 10
    assert waits.share_of(PROBE_SECONDS) < 0.5
