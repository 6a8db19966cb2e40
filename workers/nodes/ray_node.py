"""Runs on each node of a Ray cluster: an actor that starts the agent there, as its child.

A process of its own, so that nothing of Ray is in what starts workers: not its threads, not its
environment. Its end ends the actor, which Ray starts again; the actor's end ends the agent.
"""

import os
import platform
import subprocess
import sys
import threading

import msgspec

from workers.nodes.messages import OTHER_VERSION, PROTOCOL, Listening, Opening

_READ_BYTES = 4096
_FAILED = 1


class AgentActor:
    """Holds the agent of a node. Imports nothing of Ray, and says nothing of its secret."""

    def __init__(self, config: bytes, python: str) -> None:
        """``config`` is the agent's, as JSON. Raises RuntimeError if the agent does not start."""
        if platform.python_version_tuple()[:2] != tuple(python.split(".")[:2]):
            raise RuntimeError(
                f"this node has Python {platform.python_version()} and the gateway {python}: "
                "install the same one"
            )
        if msgspec.json.decode(config, type=Opening).protocol != PROTOCOL:
            raise RuntimeError(f"this node {OTHER_VERSION}")
        # Ray sets threads for what it starts; how many a worker has is a setting of ours.
        environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "workers.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        self._agent.stdin.write(config + b"\n")
        self._agent.stdin.flush()
        line = self._agent.stdout.readline(_READ_BYTES)
        if not line:
            raise RuntimeError(f"the agent has ended with code {self._agent.wait()}; see its log")
        self._port = msgspec.json.decode(line, type=Listening).port
        threading.Thread(target=self._end_with_agent, name="agent", daemon=True).start()

    def port(self) -> int:
        """Return where the agent listens."""
        return self._port

    def _end_with_agent(self) -> None:
        self._agent.wait()
        os._exit(_FAILED)
