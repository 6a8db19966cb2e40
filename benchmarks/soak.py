"""Runs a bad day in a minute: clients of every kind, while workers are killed.

    python -m benchmarks.soak [--seconds 60] [--clients 24] [--seed 1]

Three fake models of 10 GB (one with two replicas) share a made-up card of 24 GB; requests are
plain, streamed, asynchronous, cancelled, abandoned, and some are poison. Meanwhile workers are
killed, stopped, restarted, drained and unloaded; the gateway is stopped, its database locked, idle
connections and bodies of 10 MB come in, keys are revoked under their streams. At the end nothing
may be in flight or reserved, each task has one final state, memory was never over-committed, the
gateway's own memory and descriptors are flat, and the log holds no traceback.
Exit code 1 if not.
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.servers import BitingLip

MODELS = ("a", "b", "c")
_REQUEST_SECONDS = 40  #: the server's own limit; a request without an answer after it is lost
_CLIENT_SECONDS = 60
GENERATE = "/api/v1/inference/text-generation"
_FAKE = (
    "{memory_bytes: 10000000000, load_seconds: 0.3, tokens_per_second: 60, batch_size: 8,"
    " faults: true}"
)
_SETTINGS = (
    "devices.fake=[{name: card, memory_bytes: 24000000000}]",
    "workers={heartbeat_timeout: 2, load_timeout: 5, max_restarts: 10000, restart_window: 5}",
    "residency={min_seconds: 2, patience: 1}",
    f"server.request_timeout={_REQUEST_SECONDS}",
    *(f"models.{name}={{engine: fake, fake: {_FAKE}}}" for name in MODELS),
    "models.a.replicas=2",
)
_POISON = ("!crash", "!oom", "!garbage")
_LARGE = {"prompt": "\N{GRINNING FACE}" + "x" * 10_000_000, "max_tokens": 1}
_PAUSE_SECONDS = 4.0  #: longer than a worker may be silent
_LOCK_SECONDS = 6.0  #: longer than a write waits for its turn
_END_SECONDS = 1.5  #: in which a revoked key's stream has to end
_MOST_GROWTH = 100 * 2**20
_MOST_DESCRIPTORS = 40  #: more than at the start: workers and clients' connections come and go
_QUIET_SECONDS = 12.0
_SETTLE_SECONDS = 30.0


@dataclass
class Soak:
    http: httpx.AsyncClient
    ends: float
    counts: Counter[str] = field(default_factory=Counter)
    tasks: list[str] = field(default_factory=list)
    over_committed: int = 0
    late_ends: int = 0  #: streams that outlived their key

    async def client(self, chance: random.Random) -> None:
        """Ask for one thing after another, in whatever way comes up."""
        ways = [self._plain] * 4 + [self._stream] * 3 + [self._later] * 2 + [self._abandon]
        while time.monotonic() < self.ends:
            prompt = f"p{chance.random()}"
            if chance.random() < 0.03:
                prompt = f"{chance.choice(_POISON)} {chance.random()}"
            body = {
                "model": chance.choice(MODELS),
                "prompt": prompt,
                "max_tokens": chance.randint(1, 40),
                "priority": chance.choice(["low", "normal", "high"]),
            }
            await chance.choice(ways)(body, chance)

    async def _plain(self, body: dict[str, Any], _chance: random.Random) -> None:
        answer = await self.http.post(GENERATE, json=body)
        code = "" if answer.is_success else answer.json()["error"]["code"]
        self.counts[f"plain {answer.status_code} {code}".strip()] += 1

    async def _stream(self, body: dict[str, Any], chance: random.Random) -> None:
        """Read to the end, or leave after some events."""
        leave = chance.randint(1, 6) if chance.random() < 0.3 else None
        names: list[str] = []
        async with self.http.stream("POST", GENERATE, json={**body, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                if leave and len(names) >= leave:
                    self.counts["stream left"] += 1
                    return
        self.counts[f"stream {names[-1] if names else answer.status_code}"] += 1

    async def _later(self, body: dict[str, Any], chance: random.Random) -> None:
        answer = await self.http.post(GENERATE, json={**body, "async": True})
        self.counts[f"async {answer.status_code}"] += 1
        if answer.is_success:
            self.tasks.append(answer.json()["task_id"])
            if chance.random() < 0.3:
                await self.http.delete(f"/api/v1/tasks/{self.tasks[-1]}")

    async def _abandon(self, body: dict[str, Any], chance: random.Random) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.random() * 0.3):
                await self.http.post(GENERATE, json=body)
        self.counts["abandoned"] += 1

    async def vandal(self, chance: random.Random) -> None:
        """Do something to a worker, now and then."""
        acts = ["kill", "kill", "stop", "restart", "drain", "unload"]
        while time.monotonic() < self.ends:
            await asyncio.sleep(chance.uniform(0.5, 2.0))
            workers = (await self.http.get("/api/v1/workers")).json()["data"]
            there = [each for each in workers if each["model"] and each["state"] != "failed"]
            if there:
                act, worker = chance.choice(acts), chance.choice(there)
                self.counts[f"worker {act}"] += 1
                with suppress(ProcessLookupError):
                    await self._harm(act, worker)

    async def _harm(self, act: str, worker: dict[str, Any]) -> None:
        match act:
            case "kill":
                os.kill(worker["pid"], signal.SIGKILL)
            case "stop":
                os.kill(worker["pid"], signal.SIGSTOP)
            case "unload":
                await self.http.post(f"/api/v1/models/{worker['model']}/unload")
            case _:
                await self.http.post(f"/api/v1/workers/{worker['id']}/{act}")

    async def surroundings(self, server: BitingLip, chance: random.Random) -> None:
        """Do something to the gateway or around it, now and then."""
        acts = [self._pause, self._lock, self._idle, self._large, self._revoke]
        while time.monotonic() < self.ends:
            await asyncio.sleep(chance.uniform(1.0, 4.0))
            act = chance.choice(acts)
            await act(server)
            self.counts[f"gateway {act.__name__.strip('_')}"] += 1

    async def _pause(self, server: BitingLip) -> None:
        os.kill(server.pid, signal.SIGSTOP)
        await asyncio.sleep(_PAUSE_SECONDS)
        os.kill(server.pid, signal.SIGCONT)

    async def _lock(self, server: BitingLip) -> None:
        with closing(sqlite3.connect(server.home / "bitinglip.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(_LOCK_SECONDS)
            other.execute("ROLLBACK")

    async def _idle(self, _server: BitingLip) -> None:
        address = (self.http.base_url.host, self.http.base_url.port)
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(closing(socket.create_connection(address)))
            await asyncio.sleep(1)

    async def _large(self, _server: BitingLip) -> None:
        answer = await self.http.post(GENERATE, json={"model": "a", **_LARGE})
        self.counts[f"large {answer.status_code}"] += 1

    async def _revoke(self, _server: BitingLip) -> None:
        """Revoke a key whose stream runs; it has to end."""
        made = await self.http.post(
            "/api/v1/keys", json={"name": "k", "scopes": ["inference:text"]}
        )
        if not made.is_success:  # the database is locked
            return
        key = made.json()
        body = {"model": "b", "prompt": "a b", "max_tokens": 2000, "stream": True}
        headers = {"Authorization": f"Bearer {key['key']}"}
        async with self.http.stream("POST", GENERATE, json=body, headers=headers) as stream:
            if (await self.http.delete(f"/api/v1/keys/{key['id']}")).is_success:
                revoked = time.monotonic()
                async for _ in stream.aiter_lines():
                    pass
                self.late_ends += time.monotonic() - revoked > _END_SECONDS

    async def watch(self) -> None:
        while time.monotonic() < self.ends:
            (card,) = (await self.status())["devices"]
            self.over_committed += card["reserved_bytes"] > card["memory_bytes"]
            await asyncio.sleep(0.1)

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get("/api/v1/cluster/status")).json()
        return found

    async def idle(self) -> bool:
        for _ in range(int(_SETTLE_SECONDS / 0.2)):
            status = await self.status()
            if not status["in_flight"] and not status["queued"]:
                return True
            await asyncio.sleep(0.2)
        return False

    async def verdicts(self) -> list[tuple[str, bool]]:
        """Judge what has to hold of the server when the day is over."""
        found = [("nothing is in flight", await self.idle())]
        states = Counter([await self._state(task) for task in self.tasks])
        self.counts |= Counter({f"task {state}": count for state, count in states.items()})
        final = states.keys() <= {"completed", "failed", "cancelled"}
        found.append(("each task has ended", final))
        for name in MODELS:
            await self.http.post(f"/api/v1/models/{name}/unload")
        found.append(("nothing is reserved", not (await self.status())["reservations"]))
        found.append(("memory was never over-committed", not self.over_committed))
        found.append(("revoked keys end their streams", not self.late_ends))
        return found

    async def _state(self, task: str) -> str:
        answer = await self.http.get(f"/api/v1/tasks/{task}")
        return str(answer.json().get("status", answer.status_code))


async def soak(server: BitingLip, asked: argparse.Namespace) -> list[tuple[str, bool]]:
    """Run a whole day; print what happened and the verdicts."""
    headers = {"Authorization": f"Bearer {server.key}"}
    limits = httpx.Limits(max_connections=500)
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=_CLIENT_SECONDS, limits=limits
    ) as http:
        gateway = psutil.Process(server.pid)
        await warm_up(http)
        before = gateway.memory_info().rss, gateway.num_fds()
        day = Soak(http, time.monotonic() + asked.seconds)
        seeds = (random.Random(asked.seed * 1000 + number) for number in range(asked.clients))
        async with asyncio.timeout(asked.seconds + 60), asyncio.TaskGroup() as group:
            group.create_task(day.watch())
            group.create_task(day.vandal(random.Random(asked.seed)))
            group.create_task(day.surroundings(server, random.Random(asked.seed + 1)))
            for seed in seeds:
                group.create_task(day.client(seed))
        verdicts = await day.verdicts()
        await asyncio.sleep(_QUIET_SECONDS)  # idle connections end
        after = gateway.memory_info().rss, gateway.num_fds()
    verdicts.append(("memory is flat", after[0] - before[0] < _MOST_GROWTH))
    verdicts.append(("descriptors are flat", after[1] - before[1] < _MOST_DESCRIPTORS))
    for what, count in sorted(day.counts.items()):
        print(f"{count:7}  {what}")
    for name, then, now in zip(("bytes", "descriptors"), before, after, strict=True):
        print(f"{now:12,}  {name} of the gateway at the end, {then:,} at the start")
    return verdicts


async def warm_up(http: httpx.AsyncClient) -> None:
    """Fill what the gateway keeps on purpose: recent jobs, and the allocator's own reserve."""
    for model in MODELS:
        for _ in range(100):
            await http.post(GENERATE, json={"model": model, "prompt": "warm", "max_tokens": 4})
    await http.post(GENERATE, json={"model": "a", **_LARGE})


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(words)
    with (
        tempfile.TemporaryDirectory() as folder,
        BitingLip(Path(folder), *_SETTINGS) as server,
    ):
        verdicts = asyncio.run(soak(server, asked))
        log = (Path(folder) / "bitinglip.log").read_text()
    verdicts.append(("the log holds no traceback", "Traceback" not in log))
    for what, holds in verdicts:
        print(f"{'yes' if holds else 'NO':>7}  {what}")
    return 0 if all(holds for _, holds in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
