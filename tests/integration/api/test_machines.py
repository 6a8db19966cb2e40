"""A server on a made-up machine says what its cards are, and loads models where they fit."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import machines
from tests.support.api_server import Served, serve
from tests.support.wait import eventually

WANT = {"model": "demo", "prompt": "hi"}


def health(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/health").json()
    return found


def client(served: Served) -> httpx.Client:
    return httpx.Client(base_url=served.url, headers=served.headers("admin"), timeout=60)


def test_health_is_degraded_while_a_card_is_missing_and_models_move_to_it(tmp_path: Path) -> None:
    machine = machines.card_without_nvml()
    devices = machine.devices(tmp_path / "root")
    with serve(tmp_path, machine=devices) as served, client(served) as admin:
        eventually(lambda: health(served)["status"] == "degraded")
        assert "no kernel module" in health(served)["checks"]["devices"]["detail"]
        assert admin.get("/readyz").status_code == 200
        assert admin.post("/api/v1/models/demo/load").status_code == 200
        assert served.workers.loads[-1].device == "cpu"
        machine.nvml.cards = (machines.card("NVIDIA L4", 24),)
        machine.nvml.init = 0
        machine.clock += 6
        eventually(lambda: health(served)["status"] == "healthy")
        eventually(lambda: not admin.get("/api/v1/cluster/status").json()["reservations"])
        assert admin.post("/api/v1/models/demo/load").status_code == 200
        load = served.workers.loads[-1]
        assert (load.device, load.visible_devices) == ("cuda", machine.nvml.cards[0].uuid)


def test_card_that_is_required_keeps_models_off_the_cpu_until_it_is_there(tmp_path: Path) -> None:
    machine = machines.card_without_nvml()
    devices = machine.devices(tmp_path / "root")
    settings: dict[str, Any] = {
        "devices": {"require": "cuda"},
        "models": {"demo": {"preload": True}},
    }
    with serve(tmp_path, machine=devices, **settings) as served, client(served) as admin:
        ready = admin.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "no usable card")
        assert "no kernel module" in ready.json()["detail"]
        refused = admin.post("/api/v1/models/demo/load")
        assert refused.status_code == 503
        assert "no kernel module" in refused.json()["error"]["message"]
        assert not served.workers.loads
        for stream in (False, True):  # a request that was queued is refused as a load is
            queued = admin.post("/v1/completions", json=WANT | {"stream": stream})
            assert (queued.status_code, queued.headers["retry-after"]) == (503, "30")
            assert queued.json()["error"]["message"] == refused.json()["error"]["message"]
            assert "x-should-retry" not in queued.headers
        machine.nvml.cards = (machines.card("NVIDIA L4", 24),)
        machine.nvml.init = 0
        machine.clock += 6
        eventually(lambda: admin.get("/readyz").status_code == 200)
        eventually(lambda: [load.device for load in served.workers.loads] == ["cuda"])


def test_card_that_is_lost_is_shown_and_the_other_gets_the_model_by_its_uuid(
    tmp_path: Path,
) -> None:
    machine = machines.two_cards()
    devices = machine.devices(tmp_path / "root")
    machines.lose(machine)
    with serve(tmp_path, machine=devices) as served, client(served) as admin:
        eventually(lambda: health(served)["status"] == "degraded")
        eventually(lambda: "fell off the bus" in health(served)["checks"]["devices"]["detail"])
        assert admin.get("/livez").status_code == 200
        assert admin.post("/api/v1/models/demo/load").status_code == 200
        assert served.workers.loads[-1].visible_devices == machine.nvml.cards[1].uuid
        shown = admin.get("/api/v1/cluster/status").json()["devices"]
        assert {each["id"]: each["state"] for each in shown}["1"] == "well"
        eventually(lambda: devices.list()[0].condition.state == "lost")


def test_health_tells_of_each_device_how_it_is_and_when_it_has_answered_last(
    tmp_path: Path,
) -> None:
    machine = machines.two_cards()
    with serve(tmp_path, machine=machine.devices(tmp_path / "root")) as served:

        def told() -> dict[str, dict[str, Any]]:
            return {each["id"]: each for each in health(served)["checks"]["devices"]["devices"]}

        eventually(lambda: all(each["last_look"] for each in told().values()))
        assert not any(each["last_job"] for each in told().values())
        with client(served) as admin:
            assert admin.post("/v1/completions", json=WANT).status_code == 200
            eventually(lambda: any(each["last_job"] for each in told().values()))
            (used,) = (each for each in told().values() if each["last_job"])
            assert used["id"] == "0"
            assert admin.post("/api/v1/models/demo/unload").status_code < 300
        machines.lose(machine)
        eventually(lambda: told()["0"]["state"] == "lost")
        lost, other = told()["0"], told()["1"]
        assert "fell off the bus" in lost["reason"]
        assert (other["state"], other["reason"]) == ("well", None)
        eventually(lambda: told()["1"]["last_look"] > other["last_look"])
        assert told()["0"]["last_look"] == lost["last_look"]


@pytest.mark.parametrize("live_without_card", [True, False])
def test_liveness_without_a_card_that_was_there_is_a_setting(
    live_without_card: bool, tmp_path: Path
) -> None:
    machine = machines.two_cards()
    devices, own = machine.devices(tmp_path / "root"), {"live_without_card": live_without_card}
    with serve(tmp_path, machine=devices, devices=own) as served:

        def livez() -> httpx.Response:
            return httpx.get(f"{served.url}/livez")

        def is_lost(card: int) -> bool:
            return devices.list()[card].condition.state == "lost"

        served.wait_sampled()
        machines.lose(machine, 0)
        eventually(lambda: is_lost(0))
        assert livez().status_code == 200  # there is another
        machines.lose(machine, 1)
        eventually(lambda: is_lost(1))
        if live_without_card:
            served.wait_sampled()
            assert livez().status_code == 200
        else:
            eventually(lambda: livez().status_code == 503)
            assert "fell off the bus" in livez().json()["detail"]


def test_liveness_does_not_depend_on_cards_that_were_never_usable(
    tmp_path: Path,
) -> None:
    devices = machines.old_driver().devices(tmp_path / "root")
    with serve(tmp_path, machine=devices, devices={"live_without_card": False}) as served:
        served.wait_sampled()
        assert httpx.get(f"{served.url}/livez").status_code == 200


def test_health_is_degraded_while_programs_wait_for_ram(tmp_path: Path) -> None:
    host = machines.MadeUpHost()
    with serve(tmp_path, machine=machines.no_driver().devices(tmp_path / "root", host)) as served:
        served.wait_sampled()
        assert health(served)["status"] == "healthy"
        host.waits = 0.3
        eventually(lambda: health(served)["status"] == "degraded")
        assert "ram: For 30% of the last minute" in health(served)["checks"]["devices"]["detail"]
        host.waits = 0.0
        eventually(lambda: health(served)["status"] == "healthy")


def test_card_that_no_model_can_use_is_never_replaced_by_the_cpu(tmp_path: Path) -> None:
    devices = machines.old_driver().devices(tmp_path / "root")
    with serve(tmp_path, machine=devices) as served, client(served) as admin:
        refused = admin.post("/api/v1/models/demo/load")
        assert refused.status_code == 503
        assert "install driver 580 or newer" in refused.json()["error"]["message"]
        assert not served.workers.loads
