"""What is told of a Ray cluster: names of nodes, and why it cannot be joined."""

from typing import Any

import pytest

from workers.nodes.messages import AgentConfig
from workers.nodes.ray_client import RayClient, RayConfig, _why_not_joined


def node(node_id: str, name: str, host: str) -> dict[str, Any]:
    return {"NodeID": node_id, "NodeName": name, "NodeManagerAddress": host, "Alive": True}


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
