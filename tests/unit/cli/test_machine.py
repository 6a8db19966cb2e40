"""Tests which models fit on this machine, as commands see it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitinglip.home import Home, HomeLock
from cli.context import CliContext
from cli.machine import machine
from model_store.manifest import Manifest
from workers.devices import CPU, Devices, DeviceUsage

ALL = 1 << 50  #: bytes: more than any machine has
MODEL = Manifest(
    name="m", kind="text", engine="text", source="import", weight_bytes=1000,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


def free_bytes(place: CliContext) -> int:
    with machine(place) as fit:
        return next(each.free_bytes for each in fit(MODEL).devices if each.id == CPU)


def test_machine_counts_what_the_server_s_workers_hold_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server can unload them; here this process is the server, and its child a worker."""
    home = Home(tmp_path)
    home.create()
    place = CliContext(home, None)
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as worker:

        def read(_: Devices, pids: Iterable[int] = (), **more: bool) -> dict[str, DeviceUsage]:
            assert not more
            return {CPU: DeviceUsage(ALL, {pid: ALL for pid in pids if pid == worker.pid})}

        monkeypatch.setattr(Devices, "read", read)
        assert free_bytes(place) <= 0
        with HomeLock(home):
            home.server_json.write_text(json.dumps({"url": "http://x", "pid": os.getpid()}))
            assert free_bytes(place) > 0
        worker.kill()
