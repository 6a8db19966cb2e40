"""Confinement of a whole server: the gateway's secrets, reports, workers' folders."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.confinement import check_whole
from tests.support.http_client import NATIVE
from tests.support.server import Server, await_ready, descendants, running_server, start_server
from tests.support.wait import eventually
from workers.confinement import Kernel

CANARY = "hf_canary"
#: One model that pretends, and no process that imports torch: these start at once.
QUICK = ("models.demo-echo.engine=fake", "demo=never", "workers.spare=false")
SETS = [part for each in QUICK for part in ("--set", each)]
ASKED = {"model": "demo-echo", "prompt": "hello", "max_tokens": 1}
#: Reads files as a process of this user without the rights of root, and says how that ends.
READER = """
import sys
from workers.confinement.limits import drop_capabilities
drop_capabilities()
for path in sys.argv[1:]:
    try:
        print(bool(open(path, "rb").read(16)))
    except OSError as error:
        print(error.strerror)
"""


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "BITINGLIP_API_KEY")
    environ = dict.fromkeys(names, CANARY)
    home = tmp_path_factory.mktemp("confined") / "home"
    with running_server(home, *SETS, environ=environ) as server:
        with server.client() as client:
            assert client.post(NATIVE, json=ASKED).status_code == 200
        yield server


def work(server: Server) -> set[Path]:
    return set((server.home / "work").iterdir())


def test_confinement_hides_the_gateway_from_processes_of_its_user(confined: Server) -> None:
    files = [f"/proc/{confined.process.pid}/{name}" for name in ("environ", "mem", "maps")]
    command = [sys.executable, "-c", READER, *files]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["Permission denied"] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look")
def test_confinement_leaves_no_token_to_the_gateways_children(confined: Server) -> None:
    children = descendants(confined.process.pid)
    assert children
    for child in children:
        assert CANARY not in child.environ().values(), child.cmdline()


def test_confinement_is_shown_by_worker_and_for_the_machine(confined: Server) -> None:
    kernel = Kernel.find()
    worker = confined.worker("demo-echo")
    check_whole(worker)
    measures = set(worker["confinement"]["measures"])
    assert {"no_new_privs", "no_core", "not_dumpable", "file_size"} <= measures
    assert ("files" in measures) == bool(kernel.landlock)
    assert confined.status()["confinement"] == {
        "mode": "auto",
        "landlock": kernel.landlock,
        "seccomp": kernel.seccomp,
    }
    assert '"confined"' in confined.log.read_text() or "confined=" in confined.log.read_text()


def test_work_folders_are_those_of_the_workers_that_run(tmp_path: Path, confined: Server) -> None:
    assert len(work(confined)) == len(confined.status()["workers"])
    home = tmp_path / "home"
    first = start_server(home, SETS)
    await_ready(first)
    with first.client() as client:
        client.post(NATIVE, json=ASKED)
    left = work(first)
    children = descendants(first.process.pid)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    psutil.wait_procs(children, 60)
    assert left <= work(first)
    with running_server(home, *SETS) as second:
        eventually(lambda: not left & work(second))
        with second.client() as client:
            client.post(NATIVE, json=ASKED)
        assert work(second)
        second.stop()
        assert work(second) == set()
