"""Has Ray start an agent on each node of its cluster, and start it again when it ends.

Ray supervises and tells what nodes there are; no command and no answer goes through it. The only
module that imports ray, which it does when a cluster is opened.
"""

import asyncio
import importlib.util
import logging
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from workers.nodes.cluster import AgentsLost
from workers.nodes.messages import AgentConfig
from workers.nodes.node import Address
from workers.nodes.ray_node import AgentActor

log = logging.getLogger(__name__)

_CALL_SECONDS = 60.0  #: that an agent's start may take
_ASK_SECONDS = 10.0
#: What Ray reads when it starts or joins a cluster: it reports nothing, and leaves the cards of
#: processes alone that ask it for none.
_ENVIRON = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_VERSIONS = re.compile(r"version mismatch", re.IGNORECASE)


def is_installed() -> bool:
    return importlib.util.find_spec("ray") is not None


class RayAgents:
    """Implements ``Agents`` over a Ray cluster."""

    def __init__(
        self, address: str, namespace: str, bind_address: str | None, config: AgentConfig
    ) -> None:
        self._address = address
        self._namespace = namespace
        self._bind_address = bind_address
        self._config = config
        self._actors: dict[str, Any] = {}  #: by the id of their node
        self._names: dict[str, str] = {}  #: of nodes, by their ids
        self._starting: dict[str, asyncio.Task[Address]] = {}
        self._addresses: dict[str, Address] = {}
        self._connected = False

    async def find(self) -> Mapping[str, Address]:
        """Return the agents that listen; those of new nodes are started meanwhile.

        Raises AgentsLost.
        """
        nodes = await asyncio.to_thread(self._nodes)
        for node_id in self._actors.keys() - nodes.keys():
            self._forget(node_id)
        for node_id, host in nodes.items():
            await self._look(node_id, host)
        return {self._names[node_id]: each for node_id, each in self._addresses.items()}

    async def close(self) -> None:
        for task in self._starting.values():
            task.cancel()
        if self._connected:
            await asyncio.to_thread(self._disconnect)

    # ---- agents ----------------------------------------------------------------------------------

    async def _look(self, node_id: str, host: str) -> None:
        """Start the agent of a node, or ask whether it still listens where it did."""
        task = self._starting.get(node_id)
        if task is None:
            self._starting[node_id] = asyncio.create_task(self._ask(node_id, host))
            return
        if not task.done():
            return
        del self._starting[node_id]
        try:
            self._addresses[node_id] = task.result()
        except Exception as error:  # noqa: BLE001  Ray's are of many kinds; it is asked again
            self._addresses.pop(node_id, None)
            log.warning("the agent of node %s: %s", self._names[node_id], _first_line(error))

    async def _ask(self, node_id: str, host: str) -> Address:
        known = node_id in self._actors
        if not known:
            self._actors[node_id] = await asyncio.to_thread(self._start, node_id, host)
        seconds = _ASK_SECONDS if known else _CALL_SECONDS
        reference = self._actors[node_id].port.remote()
        port = await asyncio.to_thread(self._get, reference, seconds)
        return Address(host, port)

    def _start(self, node_id: str, host: str) -> Any:
        """Have Ray start the actor of a node; returns before it runs."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        config = msgspec.structs.replace(self._config, host=self._bind_address or host)
        actor = ray.remote(AgentActor).options(
            num_cpus=0,
            num_gpus=0,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            runtime_env={"env_vars": _ENVIRON},
        )
        return actor.remote(msgspec.json.encode(config), platform.python_version())

    def _get(self, reference: Any, seconds: float) -> int:
        import ray

        port: int = ray.get(reference, timeout=seconds)
        return port

    def _forget(self, node_id: str) -> None:
        self._actors.pop(node_id, None)
        self._addresses.pop(node_id, None)
        if (task := self._starting.pop(node_id, None)) is not None:
            task.cancel()

    # ---- ray -------------------------------------------------------------------------------------

    def _nodes(self) -> dict[str, str]:
        """Return the addresses of the nodes that are alive, by their ids. Raises AgentsLost."""
        import ray

        if not self._connected:
            self._connect()
        try:
            found = [each for each in ray.nodes() if each["Alive"]]
        except Exception as error:  # Ray's own, of many kinds
            raise AgentsLost(f"Ray does not tell of its nodes: {_first_line(error)}") from error
        hosts = {each["NodeID"]: each["NodeName"] or each["NodeManagerAddress"] for each in found}
        seen = Counter(hosts.values())
        for node_id, name in hosts.items():
            # Nodes of one machine have the same name.
            short = name if seen[name] == 1 else f"{name}-{node_id[:6]}"
            self._names.setdefault(node_id, short)
        return {each["NodeID"]: each["NodeManagerAddress"] for each in found}

    def _connect(self) -> None:
        """Join the cluster. Raises AgentsLost."""
        import ray

        for name, value in _ENVIRON.items():
            os.environ.setdefault(name, value)
        try:
            ray.init(
                address=self._address,
                namespace=self._namespace,
                log_to_driver=False,
                include_dashboard=False,
                configure_logging=False,
            )
        except Exception as error:  # Ray's own, of many kinds
            text = _first_line(error)
            if _VERSIONS.search(str(error)):
                text = " ".join(str(error).split())
                advice = "Install the same Python and the same ray on all machines."
            else:
                advice = "Start it with 'ray start --head', or correct workers.ray.address."
            raise AgentsLost(
                f"The Ray cluster at {self._address} cannot be joined: {text}. {advice}"
            ) from error
        self._connected = True

    def _disconnect(self) -> None:
        """End the agents, and leave the cluster."""
        import ray

        for actor in self._actors.values():
            try:
                ray.kill(actor)
            except Exception as error:  # noqa: BLE001  Ray's are of many kinds; it is gone already
                log.info("an agent could not be ended: %s", _first_line(error))
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
