"""Hold each thing around the gateway broken for as long as an operator would see it broken.

    python -m benchmarks.surroundings [--seconds 60] [--requests 300]

The tests break the same things for seconds. Here the database is locked for a minute, the disk of
the home is full for a minute (Linux, as root: a file system of 3 MB is mounted), the gateway is
stopped for 36 seconds, and 300 requests of 10 MB end. All the while text has to be answered, and
afterwards the server has to be healthy by itself. Exit code 1 if not.
"""

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from benchmarks.servers import BitingLip

_GENERATE = "/api/v1/inference/text-generation"
_MODEL = "m"
_SETTINGS = (f"models.{_MODEL}={{engine: fake, fake: {{batch_size: 8}}}}",)
_BODY = {"model": _MODEL, "prompt": "a b", "max_tokens": 4}
_LARGE = {**_BODY, "max_tokens": 1, "prompt": "\N{GRINNING FACE}" + "x" * 10_000_000}
_PAUSE_SECONDS = 36.0  #: longer than a worker may be silent by default
_RECOVERY_SECONDS = 60.0
_MOST_GROWTH = 100 * 2**20


class Trial:
    """Asks a server for text while something is broken, and judges what came of it."""

    def __init__(self, server: BitingLip, http: httpx.Client) -> None:
        self.server = server
        self.http = http
        self.holds = True

    def ask(self, seconds: float) -> None:
        """Send a request each half second; each has to succeed."""
        until = time.monotonic() + seconds
        slowest = 0.0
        failed = 0
        while time.monotonic() < until:
            began = time.monotonic()
            failed += not self.http.post(_GENERATE, json=_BODY).is_success
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.5)
        self.judge(f"text was answered all the while (slowest {slowest * 1e3:.0f} ms)", not failed)

    def degraded(self) -> None:
        self.judge("/health said that it is degraded", self._status() == "degraded")

    def recovered(self) -> None:
        began = time.monotonic()
        while self._status() != "healthy" and time.monotonic() - began < _RECOVERY_SECONDS:
            time.sleep(0.2)
        self.judge(
            f"/health is well again, {time.monotonic() - began:.1f} s later",
            self._status() == "healthy",
        )

    def workers(self) -> list[int]:
        return [each["pid"] for each in self.http.get("/api/v1/workers").json()["data"]]

    def judge(self, what: str, holds: bool) -> None:
        self.holds = self.holds and holds
        print(f"{'yes' if holds else 'NO':>7}  {what}", flush=True)

    def _status(self) -> str:
        return str(self.http.get("/health").json()["status"])


def locked(trial: Trial, seconds: float) -> None:
    print(f"the database is locked for {seconds:g} s")
    with closing(sqlite3.connect(trial.server.home / "bitinglip.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        trial.ask(seconds)
        trial.degraded()
        other.rollback()
    trial.recovered()


def full(trial: Trial, seconds: float) -> None:
    print(f"the disk is full for {seconds:g} s")
    filler = trial.server.home / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    trial.http.post("/api/v1/keys", json={"name": "k", "scopes": ["inference:text"]})
    trial.ask(seconds)
    trial.degraded()
    filler.unlink()
    trial.recovered()


def stopped(trial: Trial, seconds: float) -> None:
    print(f"the gateway is stopped for {seconds:g} s")
    trial.ask(0.1)
    before = trial.workers()
    os.kill(trial.server.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(trial.server.pid, signal.SIGCONT)
    trial.ask(5)
    trial.judge("no worker was ended for it", trial.workers() == before)
    trial.recovered()


def large(trial: Trial, requests: int) -> None:
    print(f"{requests} requests of 10 MB end")
    gateway = psutil.Process(trial.server.pid)
    trial.http.post(_GENERATE, json=_LARGE)
    before = gateway.memory_info().rss
    failed = sum(not trial.http.post(_GENERATE, json=_LARGE).is_success for _ in range(requests))
    grown = gateway.memory_info().rss - before
    trial.judge("each was answered", not failed)
    trial.judge(f"the gateway grew by {grown / 2**20:.0f} MiB", grown < _MOST_GROWTH)


def run(folder: Path, act: Callable[[Trial], None]) -> bool:
    """Try one thing on a server of its own."""
    with BitingLip(folder, *_SETTINGS) as server:
        headers = {"Authorization": f"Bearer {server.key}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=120) as http:
            trial = Trial(server, http)
            act(trial)
        trial.judge("it stops when it is told to", server.terminate() == 0)
    return trial.holds


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of 3 MB; yields False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=300)
    asked = parser.parse_args()
    acts: list[Callable[[Trial], None]] = [
        lambda trial: locked(trial, asked.seconds),
        lambda trial: stopped(trial, _PAUSE_SECONDS),
        lambda trial: large(trial, asked.requests),
    ]
    holds = []
    for act in acts:
        with tempfile.TemporaryDirectory() as folder:
            holds.append(run(Path(folder), act))
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder)) as mounted:
        if mounted:
            holds.append(run(Path(folder), lambda trial: full(trial, asked.seconds)))
        else:
            print("a full disk was not tried: mounting one needs root")
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
