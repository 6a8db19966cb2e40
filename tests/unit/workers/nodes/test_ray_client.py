"""Reports about a Ray cluster: names of nodes, and why it cannot be joined."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from workers.nodes.messages import AgentConfig
from workers.nodes.ray_client import (
    ClusterReport,
    RayClient,
    RayConfig,
    _why_no_agent,
    _why_not_joined,
)
from workers.nodes.ray_node import AgentActor

#: a library that prints what it likes, as Ray does when its daemon on the machine ends
_TALKATIVE = """
import os
def init(**_): os.write(1, b"[core] the raylet is gone\\n")
def nodes(): print("a stack trace", flush=True); return []
def shutdown(): pass
"""


def node(node_id: str, name: str, host: str) -> dict[str, Any]:
    return {"NodeID": node_id, "NodeName": name, "NodeManagerAddress": host, "Alive": True}


def test_ray_client_writes_nothing_that_ray_prints(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text(_TALKATIVE)
    agent = AgentConfig(folder="f", models=())
    config = RayConfig(address="auto", namespace="n", bind_address=None, agent=agent)
    path = os.pathsep.join((str(tmp_path), *sys.path))
    ended = subprocess.run(
        [sys.executable, "-m", "workers.nodes.ray_client"],
        input=msgspec.json.encode(config) + b"\n",
        capture_output=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
        check=True,
    )
    for line in ended.stdout.splitlines():
        assert msgspec.json.decode(line, type=ClusterReport).trouble is None
    assert b"the raylet is gone" in ended.stderr


def test_ray_nodes_of_one_machine_have_names_of_their_own_that_stay() -> None:
    config = RayConfig(
        address="auto",
        namespace="n",
        bind_address=None,
        agent=AgentConfig(folder="f", models=()),
    )
    client = RayClient(config)
    client._see([node("aaaaaaaa", "", "10.0.0.1"), node("bbbbbbbb", "big", "10.0.0.2")])
    client._see([node("aaaaaaaa", "", "10.0.0.1"), node("cccccccc", "", "10.0.0.1")])
    assert {each.name for each in client._nodes.values()} == {"10.0.0.1", "10.0.0.1-cccccc"}
    client._see([node("dddddddd", "rack 1", "10.0.0.3"), node("eeeeeeee", "rack:1", "10.0.0.4")])
    assert {each.name for each in client._nodes.values()} == {"rack-1-dddddd", "rack-1-eeeeee"}


def test_ray_actor_refuses_the_settings_of_another_version_by_name() -> None:
    config = b'{"protocol":"another","folder":"f","models":[],"a_setting_to_come":1}'
    with pytest.raises(RuntimeError, match=r"node runs another version .* install the same"):
        AgentActor(config, platform.python_version())


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2"), "same Python"),
        (ConnectionError("Could not find any running Ray instance."), "ray start --head"),
    ],
)
def test_ray_cluster_that_cannot_be_joined_is_told_with_what_to_do(
    error: Exception, advice: str
) -> None:
    told = _why_not_joined("10.0.0.1:6379", error)
    assert "10.0.0.1:6379" in told
    assert advice in told


def test_ray_node_without_the_package_is_told_with_what_to_do() -> None:
    told = _why_no_agent(RuntimeError("a trace\nModuleNotFoundError: No module named 'workers'"))
    assert told.startswith("ModuleNotFoundError: No module named 'workers': BitingLip is not inst")
    assert _why_no_agent(RuntimeError("a trace\nanother")) == "another"


def test_ray_head_that_does_not_answer_is_told_before_ray_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    agent = AgentConfig(folder="f", models=())
    for address in ("127.0.0.1:1", f"{'a' * 64}.b:1"):
        config = RayConfig(address=address, namespace="n", bind_address=None, agent=agent)
        told = RayClient(config).connect() or ""
        assert f"{address} cannot be joined: nothing answers there" in told
        assert "ray start --head" in told


def test_ray_actors_cost_no_cpu_and_have_names_of_their_own_in_the_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    actor = SimpleNamespace(remote=lambda *_: None)

    class Remote:
        def options(self, **given: Any) -> Any:
            asked.append(given)
            return actor

    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=dict)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=lambda _: Remote()))
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    agent = AgentConfig(folder="f", models=())
    client = RayClient(RayConfig(address="auto", namespace="n", bind_address=None, agent=agent))
    client._see([node("aaaaaaaa", "big", "10.0.0.1")])
    for _ in range(2):
        client._start("aaaaaaaa", client._nodes["aaaaaaaa"])
    assert len({each["name"] for each in asked}) == 2
    for each in asked:
        assert "big" in each["name"]
        assert (each["num_cpus"], each["num_gpus"], each["max_restarts"]) == (0, 0, -1)
        assert each["scheduling_strategy"] == {"node_id": "aaaaaaaa", "soft": False}
