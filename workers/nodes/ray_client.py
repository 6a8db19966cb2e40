"""Speaks to Ray, in a process of its own: the only module that imports ray.

Takes its settings as a line of JSON on its input, whose end ends it, and writes a line whenever it
has looked at the cluster.
"""

import contextlib
import logging
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from workers.nodes.messages import PROTOCOL, AgentConfig
from workers.nodes.ray_address import HINT, why_unreached
from workers.nodes.ray_node import AgentActor

_LOOK_SECONDS = 1.0
_REACH_SECONDS = 5.0  #: that a connection to the head may take
_START_SECONDS = 120.0  #: that an agent may take until it listens
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  #: seconds before an agent that failed is started again
_MOST_CONFIG = 1 << 20
_MOST_TEXT = 500
_NAME = re.compile(r"[^A-Za-z0-9._-]+")  #: what a node's name has not: it is a part of ids
_MOST_NAME = 100
#: What Ray reads when it starts or joins a cluster: it reports nothing, and leaves the cards of
#: processes alone that ask it for none.
_ENVIRON = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_UNREACHED = "Ray does not reach the node"
_MISMATCH = "version mismatch"


class RayConfig(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    namespace: str
    bind_address: str | None
    agent: AgentConfig


class FoundAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Tells of a node: where its agent listens, or why it does not."""

    host: str
    port: int | None = None
    trouble: str | None = None


class ClusterReport(msgspec.Struct, frozen=True, kw_only=True):
    nodes: dict[str, FoundAgent] = {}
    trouble: str | None = None  #: why Ray tells nothing


@dataclass(slots=True)
class _Node:
    name: str
    host: str
    actor: Any = None
    asked: Any = None  #: a reference to the port of its agent
    asked_at: float = 0.0
    port: int | None = None
    trouble: str | None = None
    failures: int = 0
    retry_at: float = 0.0


class RayClient:
    """Starts an actor on each node, and asks it now and then where its agent listens."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._nodes: dict[str, _Node] = {}  #: by Ray's id

    def connect(self) -> str | None:
        """Join the cluster; return why that cannot be."""
        os.environ.update(_ENVIRON)
        if (why := why_unreached(self._config.address, _REACH_SECONDS)) is not None:
            return _not_joined(self._config.address, f"nothing answers there ({why})", HINT)
        import ray

        try:
            ray.init(
                address=self._config.address,
                namespace=self._config.namespace,
                log_to_driver=False,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # noqa: BLE001  Ray's are of many kinds
            return _why_not_joined(self._config.address, error)
        return None

    def refresh(self) -> ClusterReport:
        """Read the state of all nodes once; takes about a second."""
        import ray

        self._see([each for each in ray.nodes() if each["Alive"]])
        now = time.monotonic()
        for node_id, node in self._nodes.items():
            if node.actor is None and now >= node.retry_at:
                node.actor = self._start(node_id, node)
            if node.actor is not None and node.asked is None:
                node.asked, node.asked_at = node.actor.port.remote(), now
        asked = [node.asked for node in self._nodes.values() if node.asked is not None]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=_LOOK_SECONDS)
        for node in self._nodes.values():
            self._hear(node)
        return ClusterReport(
            nodes={
                node.name: FoundAgent(host=node.host, port=node.port, trouble=node.trouble)
                for node in self._nodes.values()
            }
        )

    def close(self) -> None:
        """End the agents, and leave the cluster."""
        import ray

        for node in self._nodes.values():
            if node.actor is not None:
                with contextlib.suppress(Exception):  # it is gone already
                    ray.kill(node.actor)
        ray.shutdown()

    def _see(self, alive: list[dict[str, Any]]) -> None:
        """Update the known nodes; those that are known keep their names."""
        there = {each["NodeID"]: each for each in alive}
        for gone in self._nodes.keys() - there.keys():
            del self._nodes[gone]
        names = {
            node_id: _NAME.sub("-", each["NodeName"] or each["NodeManagerAddress"])[:_MOST_NAME]
            for node_id, each in there.items()
        }
        seen = Counter(names.values())
        for node_id in there.keys() - self._nodes.keys():
            name, host = names[node_id], there[node_id]["NodeManagerAddress"]
            # Nodes of one machine have the same name.
            alone = seen[name] == 1
            self._nodes[node_id] = _Node(name if alone else f"{name}-{node_id[:6]}", host)

    def _start(self, node_id: str, node: _Node) -> Any:
        """Have Ray start the actor of a node; returns before it runs."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        host = self._config.bind_address or node.host
        agent = msgspec.structs.replace(
            self._config.agent, host=host, node=node_id, protocol=PROTOCOL
        )
        actor = ray.remote(AgentActor).options(
            # One that Ray has not forgotten yet, or another server's, may have the node's name.
            name=f"agent on {node.name} {secrets.token_hex(4)}",
            num_cpus=0,
            num_gpus=0,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            runtime_env={"env_vars": _ENVIRON},
        )
        return actor.remote(msgspec.json.encode(agent), platform.python_version())

    def _hear(self, node: _Node) -> None:
        """Take over the answer of a node's actor, if it has come."""
        import ray

        if node.asked is None:
            return
        try:
            node.port = ray.get(node.asked, timeout=0)
        except ray.exceptions.GetTimeoutError:
            if time.monotonic() - node.asked_at > _START_SECONDS:
                self._give_up(node, f"its agent did not listen within {_START_SECONDS:g} s")
        except ray.exceptions.ActorUnavailableError:  # Ray starts it again
            node.asked, node.port, node.trouble = None, None, _UNREACHED
        except ray.exceptions.ActorUnschedulableError:  # Ray has noticed that the node is gone
            self._give_up(node, _UNREACHED)
        except Exception as error:  # noqa: BLE001  Ray's are of many kinds
            self._give_up(node, _why_no_agent(error))
        else:
            node.asked, node.trouble, node.failures = None, None, 0

    def _give_up(self, node: _Node, why: str) -> None:
        """Start another actor, after a while."""
        import ray

        with contextlib.suppress(Exception):  # it has died
            ray.kill(node.actor)
        node.failures += 1
        pause = min(_FIRST_PAUSE * 2 ** (node.failures - 1), _LONGEST_PAUSE)
        node.retry_at = time.monotonic() + pause
        node.actor, node.asked, node.port, node.trouble = None, None, None, why


def _why_not_joined(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())[:_MOST_TEXT].rstrip(".")
    advice = HINT
    if _MISMATCH in text.lower():
        advice = "install the same Python and the same ray on all machines"
    return _not_joined(address, text, advice)


def _not_joined(address: str, why: str, advice: str) -> str:
    where = "of this machine" if address == "auto" else f"at {address}"
    return f"The Ray cluster {where} cannot be joined: {why}; {advice}."


def _why_no_agent(error: Exception) -> str:
    why = _last_line(error)
    if "No module named" in why:
        return (
            f"{why}: BitingLip is not installed where Ray runs there; install the same version, "
            "and start Ray from that environment"
        )
    return why


def _last_line(error: Exception) -> str:
    """Return the last line of an actor's error, which is its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_MOST_TEXT].rstrip(".")


def _cluster_report(client: RayClient) -> ClusterReport:
    """Read the state of the cluster; while its head is away, report that: agents go on without
    it."""
    try:
        return client.refresh()
    except Exception as error:  # noqa: BLE001  Ray's are of many kinds
        return ClusterReport(trouble=f"Ray does not tell of its nodes: {_last_line(error)}")


def _say(out: BinaryIO, told: ClusterReport) -> None:
    out.write(msgspec.json.encode(told) + b"\n")
    out.flush()


def _own_output() -> BinaryIO:
    """Return where this process writes what it tells; what Ray prints goes to the log."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def main() -> int:
    """Look at the cluster until the input ends; return the exit code."""
    config = msgspec.json.decode(sys.stdin.buffer.readline(_MOST_CONFIG), type=RayConfig)
    out = _own_output()
    ended = threading.Event()

    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        ended.set()

    threading.Thread(target=wait_for_end, name="input", daemon=True).start()
    client = RayClient(config)
    try:
        if (why := client.connect()) is not None:
            _say(out, ClusterReport(trouble=why))
            return 1
        while not ended.is_set():
            _say(out, _cluster_report(client))
            ended.wait(_LOOK_SECONDS)
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
