"""Has Ray start an agent on each node of its cluster, and start it again when it ends.

Ray supervises and tells what nodes there are; no command and no answer goes through it. It is in a
process of its own (``ray_client``): Ray's library ends the process that uses it when the head of
its cluster is gone for long, and that must not be the server.
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping

import msgspec

from workers.nodes.cluster import AgentsLost
from workers.nodes.messages import AgentConfig
from workers.nodes.node import Address
from workers.nodes.ray_client import ClusterReport, FoundAgent, RayConfig

log = logging.getLogger(__name__)

_MODULE = "workers.nodes.ray_client"
_MOST_LINE = 1 << 20
_END_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  #: seconds before it is started again
_OUR_SETTINGS = "BITINGLIP_"  #: variables that may hold passwords, and that Ray has no use for


def is_installed() -> bool:
    return importlib.util.find_spec("ray") is not None


class RayAgents:
    """Implements ``Agents`` over a Ray cluster."""

    def __init__(
        self, address: str, namespace: str, bind_address: str | None, agent: AgentConfig
    ) -> None:
        self._config = RayConfig(
            address=address, namespace=namespace, bind_address=bind_address, agent=agent
        )
        self._told: ClusterReport | None = None
        self._running: asyncio.Task[None] | None = None

    async def find(self) -> Mapping[str, Address | str]:
        """Return the agents that listen, and why nodes have none. Raises AgentsLost."""
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        told = self._told
        if told is None:
            return {}
        if told.trouble is not None:
            raise AgentsLost(told.trouble)
        return {name: _found(each) for name, each in told.nodes.items()}

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        """Keep the process running that speaks to Ray."""
        pause = _FIRST_PAUSE
        while True:
            began = asyncio.get_running_loop().time()
            try:
                code = await self._run_once()
                why = f"The process that speaks to Ray has ended with code {code}; see the log."
            except OSError as error:
                why = f"The process that speaks to Ray could not be started ({error.strerror})."
            if self._told is None or self._told.trouble is None:
                self._told = ClusterReport(trouble=why)
            if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_once(self) -> int:
        """Run the process to its end; return its code. Raises OSError."""
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(_OUR_SETTINGS)
        }
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environ | {"PYTHONPATH": path},
            limit=_MOST_LINE,
            start_new_session=True,  # a Ctrl-C is the server's, which ends it in its turn
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(self._config) + b"\n")
            while line := await process.stdout.readline():
                self._told = msgspec.json.decode(line, type=ClusterReport)
            return await process.wait()
        except (ValueError, msgspec.DecodeError) as error:
            raise OSError(0, f"it writes what cannot be read: {error}") from error
        finally:
            process.stdin.close()  # which ends it, and the agents with it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


def _found(each: FoundAgent) -> Address | str:
    if each.port is None:
        return each.trouble or "its agent is being started"
    return Address(each.host, each.port)
