"""Agents as processes of this machine, each a node of a cluster of its own."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from workers.folders import WorkFolders
from workers.nodes.cluster import Cluster
from workers.nodes.messages import AgentConfig, Listening
from workers.nodes.models.source import ModelSource
from workers.nodes.node import Address

SECRET = "a secret of these tests"
CARD = ("card", 8_000_000_000)


_SCRIPTED = """
import functools, sys
from workers import agent
from workers.nodes import agent as parts
parts.SpawnLauncher = functools.partial(parts.SpawnLauncher, sys.argv[1])
sys.exit(agent.main())
"""


class AgentProcess:
    """Runs ``python -m workers.agent`` as Ray's actor does.

    ``entry`` plays its workers in place of the product's own.
    """

    def __init__(self, folder: Path, models: Path, entry: str = "", **config: Any) -> None:
        own = AgentConfig(
            **{
                "secret": SECRET,
                "folder": str(folder),
                "models": (str(models),),
                "fake": (CARD,),
                "spare": False,
                "ends_with_input": True,
                **config,
            }
        )
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", _SCRIPTED, entry] if entry else ["-m", "workers.agent"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(own) + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the agent did not start"
        told = msgspec.json.decode(line, type=Listening)
        self.address = Address(told.host, told.port)

    def is_running(self) -> bool:
        """Return True until it has ended; a fork of the process that started it may ask, too."""
        try:
            return psutil.Process(self.process.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


class StaticAgents:
    """Says where agents listen, as Ray would."""

    def __init__(self, agents: Mapping[str, AgentProcess]) -> None:
        self.agents = dict(agents)

    async def find(self) -> Mapping[str, Address | str]:
        there = self.agents.items()
        return {name: each.address for name, each in there if each.is_running()}

    async def close(self) -> None:
        pass


@contextlib.contextmanager
def agents(root: Path, *names: str, **config: Any) -> Iterator[dict[str, AgentProcess]]:
    """Start an agent for each name, over the models of a home at ``root``."""
    started: dict[str, AgentProcess] = {}
    try:
        for name in names:
            started[name] = AgentProcess(root / f"on-{name}", root / "models", **config)
        yield started
    finally:
        for agent in started.values():
            agent.stop()


@contextlib.asynccontextmanager
async def cluster_of(
    root: Path,
    static: StaticAgents,
    secret: str = SECRET,
    heartbeat_timeout: float = 10.0,
    wait_seconds: float = 20,
    source: ModelSource | None = None,
) -> AsyncIterator[Cluster]:
    """Connect to agents, and wait for their devices."""
    folders = WorkFolders(root / "work")
    uploads = root / "uploads"
    await asyncio.to_thread(uploads.mkdir, exist_ok=True)
    cluster = Cluster(
        static, secret, folders, uploads, heartbeat_timeout=heartbeat_timeout, source=source
    )
    await cluster.open(wait_seconds)
    try:
        yield cluster
    finally:
        await cluster.close()
