"""A real server: ``bitinglip serve`` as a user starts it, in a home of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support import command_forks

START_SECONDS = 120
_ANSWER_SECONDS = 150  #: a worker that imports torch on a busy machine; only failures wait so long
#: returns the address of the database of a home; None: the file in it
database_of: Callable[[Path], str] | None = None


@dataclass
class Server:
    """Runs a server, with what a test needs to talk to it."""

    home: Path
    process: "subprocess.Popen[bytes] | command_forks.Forked"
    log: Path
    url: str = ""
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(**{**self._settings(), **options})

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=500)
        return httpx.AsyncClient(**{**self._settings(), "limits": limits, **options})

    def _settings(self) -> dict[str, Any]:
        return {"base_url": self.url, "headers": self.headers, "timeout": _ANSWER_SECONDS}

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            answer = client.get("/api/v1/cluster/status")
            answer.raise_for_status()
            body: dict[str, Any] = answer.json()
            return body

    def worker(self, model: str) -> dict[str, Any]:
        """Return the worker of a model; it must be loaded."""
        with self.client() as client:
            workers = client.get("/api/v1/workers").json()["data"]
        return next(worker for worker in workers if worker["model"] == model)

    def idle(self) -> bool:
        """Check that nothing runs, waits or is held."""
        status = self.status()
        return bool(status["in_flight"] == 0 and status["queued"] == 0)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def running_server(
    home: Path,
    *args: str,
    environ: dict[str, str] | None = None,
    shell: str = "",
    spare: bool = False,
    forked_workers: bool = False,
) -> Iterator[Server]:
    """Start ``bitinglip serve`` on a free port and wait until it is ready; stop it after."""
    server = start_server(home, args, environ, shell, spare=spare, forked_workers=forked_workers)
    try:
        await_ready(server)
        yield server
    finally:
        children = descendants(server.process.pid)
        server.stop()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def start_server(
    home: Path,
    args: Sequence[str] = (),
    environ: dict[str, str] | None = None,
    shell: str = "",
    *,
    spare: bool = False,
    forked_workers: bool = False,
) -> Server:
    """Start ``bitinglip serve``; without a spare, whose imports cost more than most tests.

    ``shell``: a line of the shell that ends in ``exec "$@"``, by which it is started.
    ``forked_workers``: its workers are forks of a process that has imported the engines. It is
    for tests with real models that ask nothing about the process or the memory of a worker.
    """
    home.mkdir(parents=True, exist_ok=True)
    log = home.with_suffix(".log")
    command = ["serve", "--home", str(home), "--port", "0", *args]
    own = {"BITINGLIP_WORKERS__SPARE": str(spare).lower(), **(environ or {})}
    if database_of is not None:
        own["BITINGLIP_DATABASE__URL"] = database_of(home / "bitinglip.db")
    env = {**os.environ, **own}
    process: subprocess.Popen[bytes] | command_forks.Forked
    with log.open("ab") as out, open(os.devnull, "rb") as nothing:
        if not shell and command_forks.can_run(own):
            process = command_forks.start(
                command,
                env=env,
                cwd=Path.cwd(),
                stdin=nothing,
                stdout=out,
                stderr=out,
                forked_workers=forked_workers,
            )
        else:
            command = [sys.executable, "-m", "cli", *command]
            if shell:
                command = ["/bin/sh", "-c", shell, "sh", *command]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    return Server(home, process, log)


def await_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        with contextlib.suppress(OSError, ValueError, httpx.TransportError):
            server.url = json.loads((server.home / "server.json").read_text())["url"]
            if httpx.get(server.url + "/readyz").status_code == 200:
                server.key = (server.home / "admin.key").read_text().strip()
                return
        time.sleep(0.05)
    raise AssertionError(f"the server is not ready:\n{server.log.read_text()}")


def descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
