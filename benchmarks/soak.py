"""A bad day in a minute: clients of every kind, and somebody who kills workers.

    python -m benchmarks.soak [--seconds 60] [--clients 24] [--seed 1]

Three fake models of 10 GB (one with two replicas) share a made-up card of 24 GB; requests are
plain, streamed, asynchronous, cancelled, abandoned, and some are poison. Meanwhile workers are
killed, stopped, restarted, drained and unloaded. At the end nothing may be in flight or reserved,
each task has one final state, memory was never over-committed, and the log holds no traceback.
Exit code 1 if not.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.servers import BitingLip

MODELS = ("a", "b", "c")
GENERATE = "/api/v1/inference/text-generation"
_FAKE = (
    "{memory_bytes: 10000000000, load_seconds: 0.3, tokens_per_second: 60, batch_size: 8,"
    " faults: true}"
)
_SETTINGS = (
    "devices.fake=[{name: card, memory_bytes: 24000000000}]",
    "workers={heartbeat_timeout: 2, max_restarts: 10000, restart_window: 5}",
    "residency={min_seconds: 2, patience: 1}",
    *(f"models.{name}={{engine: fake, fake: {_FAKE}}}" for name in MODELS),
    "models.a.replicas=2",
)
_POISON = ("!crash", "!oom", "!garbage")
_SETTLE_SECONDS = 30.0


@dataclass
class Soak:
    http: httpx.AsyncClient
    ends: float
    counts: Counter[str] = field(default_factory=Counter)
    tasks: list[str] = field(default_factory=list)
    over_committed: int = 0

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

    async def watch(self) -> None:
        while time.monotonic() < self.ends:
            (card,) = (await self.status())["devices"]
            self.over_committed += card["reserved_bytes"] > card["memory_bytes"]
            await asyncio.sleep(0.1)

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get("/api/v1/cluster/status")).json()
        return found

    async def bootstrapped(self) -> bool:
        for _ in range(int(_SETTLE_SECONDS / 0.2)):
            status = await self.status()
            if not status["in_flight"] and not status["queued"]:
                return True
            await asyncio.sleep(0.2)
        return False

    async def verdicts(self) -> list[tuple[str, bool]]:
        """What has to hold of the server when the day is over."""
        found = [("nothing is in flight", await self.bootstrapped())]
        states = Counter([await self._state(task) for task in self.tasks])
        self.counts |= Counter({f"task {state}": count for state, count in states.items()})
        final = states.keys() <= {"completed", "failed", "cancelled"}
        found.append(("each task has ended", final))
        for name in MODELS:
            await self.http.post(f"/api/v1/models/{name}/unload")
        found.append(("nothing is reserved", not (await self.status())["reservations"]))
        found.append(("memory was never over-committed", not self.over_committed))
        return found

    async def _state(self, task: str) -> str:
        answer = await self.http.get(f"/api/v1/tasks/{task}")
        return str(answer.json().get("status", answer.status_code))


async def soak(server: BitingLip, asked: argparse.Namespace) -> list[tuple[str, bool]]:
    """A whole day; prints what happened, gives the verdicts."""
    headers = {"Authorization": f"Bearer {server.key}"}
    limits = httpx.Limits(max_connections=500)
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=60, limits=limits
    ) as http:
        day = Soak(http, time.monotonic() + asked.seconds)
        seeds = (random.Random(asked.seed * 1000 + number) for number in range(asked.clients))
        async with asyncio.timeout(asked.seconds + 60), asyncio.TaskGroup() as group:
            group.create_task(day.watch())
            group.create_task(day.vandal(random.Random(asked.seed)))
            for seed in seeds:
                group.create_task(day.client(seed))
        verdicts = await day.verdicts()
    for what, count in sorted(day.counts.items()):
        print(f"{count:7}  {what}")
    process = psutil.Process(server.pid)
    print(f"{process.num_fds():7}  descriptors, {process.num_threads()} threads at the end")
    return verdicts


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
