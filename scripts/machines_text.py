"""Writes docs/machines.md: what ten made-up machines show to an operator."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console

from bitinglip.home import resolve_home
from bitinglip.settings import Settings
from bitinglip.start_text import start_text
from cli.checks.accelerator import findings
from cli.show.tables import board
from tests.support.api_server import serve
from tests.support.machines import MACHINES, Machine, MadeUpHost, lose
from workers.devices import Devices

PAGE = Path(__file__).parents[1] / "docs/machines.md"
HEAD = """\
# Devices: how ten machines report their cards

Each is made up: the files of its kernel, the answers of its driver and the torch that is installed
are given, and the server and its commands look at them as at real ones. For each: what `bitinglip
serve` prints when it answers, what `bitinglip doctor` reports on devices, the check `devices` of
`/health`, and the devices that `bitinglip top` shows. A card that is not well gets no new load;
models on it go on. A card that is missing is looked for every 5 s, after five minutes every 60 s,
and takes part without a restart once it is there. `devices.require: cuda` keeps models off the CPU
until then, and `/readyz` at 503; to run on the CPU on purpose, set `CUDA_VISIBLE_DEVICES` to -1.

Made by `python -m scripts.machines_text`.
"""
_MARKS = {"ok": "ok  ", "warning": "warn", "error": "FAIL"}
_WIDTH = 110
_PORT = re.compile(r"127\.0\.0\.1:\d+")
_LOAD = re.compile(r"load \d+%")  #: of the machine that runs this


def machines_text() -> str:
    return HEAD + "".join(_machine(name, make()) for name, make in MACHINES.items())


def _machine(name: str, machine: Machine) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        devices = machine.devices(root / "machine", MadeUpHost())
        devices.read()
        if machine.loses is not None:
            lose(machine, machine.loses)
            devices.read()
        devices.read(idle=True)
        machine.clock += 61  # seconds without a model
        devices.read(idle=True)
        doctor = [*_doctor(devices, machine), ""]
        start, *rest = _server(root / "server", devices)
        lines = [*start.splitlines(), "", *doctor, *rest]
    make = sys.modules[Machine.__module__].__dict__[MACHINES[name].__name__]
    about = " ".join(make.__doc__.removeprefix("Return ").split())  # the machine is the subject
    text = "\n".join(line.rstrip() for line in lines)
    return (
        f"\n## {name[0].upper()}{name[1:]}\n\n{about[0].upper()}{about[1:]}\n\n```\n{text}\n```\n"
    )


def _doctor(devices: Devices, machine: Machine) -> Iterator[str]:
    yield "$ bitinglip doctor"
    for finding in findings(devices, Settings(), machine.build, idle=True):
        yield f"{_MARKS[finding.level]}  {finding.check:<13}{finding.detail}"
        if finding.advice:
            yield f"{'':19}-> {finding.advice}"


def _server(root: Path, devices: Devices) -> Iterator[str]:
    root.mkdir()
    with serve(root, machine=devices) as served:
        served.wait_sampled()
        operations = served.services.operations
        told = operations.devices(), operations.device_problems(), {"demo-text": ("chat",)}
        home = resolve_home(None, {})
        yield "$ bitinglip serve\n" + start_text("http://localhost:8080", *told, home)
        health = httpx.get(f"{served.url}/health").json()
        headers = served.headers("admin")
        status = httpx.get(f"{served.url}/api/v1/cluster/status", headers=headers).json()
    check = health["checks"]["devices"]
    yield "$ curl -s localhost:8080/health"
    yield f"status {health['status']}; devices: ok {str(check['ok']).lower()}, {check['detail']}"
    yield ""
    yield "$ bitinglip top --once"
    shown = status | {"url": served.url, "models": [], "workers": []}
    screen = Console(width=_WIDTH, markup=False, highlight=False, emoji=False, color_system=None)
    with screen.capture() as captured:
        screen.print(board(shown, None, width=_WIDTH, most_models=0))
    shown = _LOAD.sub("load 0%", captured.get().rstrip())
    yield from _PORT.sub("localhost:8080", shown).splitlines()


if __name__ == "__main__":
    PAGE.write_text(machines_text())
