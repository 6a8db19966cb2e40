"""The driver's view of the cards against torch's."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from workers.devices import Device, Devices
from workers.devices.torch_report import ask_torch
from workers.environment import worker_environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HOLD = 256 << 20
#: Names and sizes of the cards as a worker sees them, then memory held until a line comes.
HOLDER = f"""
import torch
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)[1], sep="|")
held = torch.zeros({HOLD}, dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
print(flush=True)
input()
"""
ASKER = """
from workers.devices import Devices
devices = Devices.find()
assert devices.read()
print(flush=True)
input()
"""


#: A computation that reads where it may not, which the driver reports as Xid 31 or 13.
WRONG = """
import torch
try:
    source = torch.zeros(8, device="cuda:0")
    torch.gather(source, 0, torch.full((1,), 1 << 40, device="cuda:0"))
    torch.cuda.synchronize()
except Exception:
    pass
print(flush=True)
input()
"""


@contextmanager
def running(code: str, cards: Sequence[Device]) -> Iterator[tuple[int, list[str]]]:
    """Yield a process with a worker's environment: its id, and the lines that it prints at
    first."""
    environ = worker_environment(dict(os.environ), platform.release())
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(card.pin for card in cards)
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        lines = []
        while (line := child.stdout.readline()).strip():
            lines.append(line.strip())
        yield child.pid, lines
        child.communicate("\n")
    assert child.returncode == 0


@pytest.fixture
def devices() -> Iterator[Devices]:
    found = Devices.find()
    yield found
    found.close()


def test_cards_and_their_order_are_those_of_a_worker(devices: Devices) -> None:
    cards = tuple(each for each in devices.list() if each.kind == "cuda")
    before = devices.read()[cards[0].id]
    with running(HOLDER, cards) as (pid, lines):
        during = devices.read()[cards[0].id]
    seen = [line.split("|") for line in lines]
    assert [name for name, _ in seen] == [card.name for card in cards]
    for (_, total), card in zip(seen, cards, strict=True):
        assert int(total) == pytest.approx(card.memory_bytes, rel=0.05)
    assert during.used_bytes - before.used_bytes >= HOLD
    assert during.processes.get(pid, HOLD) >= HOLD  # a container may hide the process


def test_device_reading_makes_no_cuda_context(devices: Devices) -> None:
    """A context takes hundreds of megabytes of a card."""
    cards = tuple(each for each in devices.list() if each.kind == "cuda")
    before = devices.read()[cards[0].id]
    with running(ASKER, cards) as (pid, _):
        during = devices.read()[cards[0].id]
    assert during.used_bytes - before.used_bytes < 64 << 20
    assert pid not in during.processes


def test_torch_tells_of_the_cards_as_nvml_does(devices: Devices) -> None:
    report = ask_torch(cards=True)
    assert report is not None
    cards = [each for each in devices.list() if each.kind == "cuda"]
    assert [(each.pin, tuple(each.capability)) for each in report.cards] == [
        (card.pin, card.capability) for card in cards
    ]
    assert devices.ask_torch()
    assert all(each.condition.state == "well" for each in devices.list())


def test_xid_events_of_a_card_are_taken_without_waiting(devices: Devices) -> None:
    """Check that reading costs nothing; whether this fault has an Xid depends on the driver."""
    cards = tuple(each for each in devices.list() if each.kind == "cuda")
    assert not any("(Xid)" in (each.note or "") for each in cards if not each.pin.startswith("MIG"))
    with running(WRONG, cards[:1]):
        began = time.monotonic()
        devices.read()
        assert time.monotonic() - began < 2
    assert {each.device for each in devices.take_reports()} <= {card.id for card in cards}
