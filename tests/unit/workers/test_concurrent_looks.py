"""Looks at the cards from several threads: a load's, beside the survey of each second."""

import threading
from concurrent.futures import ThreadPoolExecutor

from tests.support.nvml import StandInCard, StandInNvml
from tests.support.wait import eventually
from workers.devices import Devices
from workers.devices.cards import Cards


def test_device_readings_at_once_are_all_answered_and_make_no_card_doubtful() -> None:
    nvml = StandInNvml(StandInCard(uuid="GPU-aa"))
    devices = Devices(Cards.find(None, nvml))
    before = nvml.calls
    nvml.waits_for = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        looks = [threads.submit(devices.read) for _ in range(3)]
        eventually(lambda: nvml.calls > before)
        nvml.waits_for.set()
        assert all("0" in look.result(timeout=30) for look in looks)
    assert [device.condition.state for device in devices.list()] == ["well"]
    devices.close()
