"""Tests that the gateway bears an agent that knows the secret and has been broken into."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.support.cluster import SECRET
from tests.support.wait import until
from workers.devices.device import Condition, Device, DeviceUsage, Elsewhere
from workers.devices.xid import Report
from workers.framing import BadFrame
from workers.nodes import link as links
from workers.nodes.facts_check import check_facts
from workers.nodes.handshake import AgentIdentity, prove_to_gateway
from workers.nodes.link import Link, LinkLost
from workers.nodes.messages import FROM_AGENT, MOST_BYTES, Kind, NodeFacts, Probed
from workers.nodes.node import Address, Node

CPU = Device("cpu", "a processor", "cpu", 1 << 30, 1 << 30)
CARD = Device("0", "a card", "cuda", 8 << 30, 8 << 30, pin="GPU-0")


def told(*devices: Device, **readings: DeviceUsage) -> NodeFacts:
    return NodeFacts(devices=devices, readings=readings)


@pytest.mark.parametrize(
    "facts",
    [
        told(CARD, replace(CARD, unified=True)),
        told(replace(CARD, unified=True)),
        told(replace(CARD, id="other:0")),
        told(replace(CARD, id="")),
        told(replace(CARD, kind="tpu")),
        told(replace(CARD, id="cpu")),
        told(replace(CARD, memory_bytes=1 << 62)),
        told(replace(CARD, physical_bytes=-1)),
        told(CPU, cpu=DeviceUsage(-1, {})),
        told(CPU, cpu=DeviceUsage(1, {1: -1})),
        told(CPU, cpu=DeviceUsage(1, {}, utilisation=math.nan)),
        told(CPU, cpu=DeviceUsage(1, {}, at=1e300)),
        NodeFacts(devices=(CPU,), readings={}, elsewhere={"cpu": Elsewhere(leave=("w",) * 2000)}),
        NodeFacts(devices=(CPU,), readings={}, elsewhere={"cpu": Elsewhere(reserved=1 << 62)}),
        told(*(replace(CARD, id=str(number)) for number in range(1000))),
        told(replace(CARD, name="two\nlines")),
        told(replace(CARD, pin="x" * 1000)),
        told(replace(CARD, condition=Condition("doubtful", "x" * 100_000))),
        NodeFacts(devices=(CPU,), readings={}, problems={"card": "x" * 100_000}),
        NodeFacts(devices=(CPU,), readings={}, problems=dict.fromkeys(map(str, range(999)), "x")),
        told(CPU, cpu=DeviceUsage(1, {}, slowed_by=("heat",) * 99)),
    ],
)
def test_facts_that_no_machine_has_are_refused(facts: NodeFacts) -> None:
    check_facts(told(CARD, CPU, cpu=DeviceUsage(1, {7: 1}, 0.5, 60.0, 200.0, at=1.7e9)))
    with pytest.raises(BadFrame):
        check_facts(facts)


async def nothing(_: Node) -> None:
    pass


def with_agent(
    tmp_path: Path,
    frames: Mapping[Kind, bytes],
    count: int = 1,
    *,
    answer: tuple[Kind, bytes] = (Kind.BEAT, b""),
    then: Callable[[Node], Awaitable[None]] = nothing,
) -> Node:
    """Return a node after its agent has sent frames as a trusted one, or ended if there is none.

    ``answer``: to the next frame; ``then``: what is done before the node is closed.
    """

    async def run() -> Node:
        identity = AgentIdentity(tmp_path)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not frames:
                writer.close()
                return
            await prove_to_gateway(reader, writer, SECRET, identity.certificate)
            link = Link(reader, writer)
            await link.receive()
            for kind, payload in frames.items():
                for _ in range(count):
                    link.send(kind, payload)
            with contextlib.suppress(LinkLost):
                await Link(reader, writer).receive()
                link.send(*answer)
                await reader.read()
            link.abort()

        node = Node("n1", SECRET, lambda: None)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identity.context)
        async with server:
            node.connect(Address(*server.sockets[0].getsockname()))
            await until(lambda: node.reason or (node.state == "well" and count == 1))
            await then(node)
            await node.close()
        return node

    return asyncio.run(run())


def test_node_that_tells_nonsense_or_too_much_is_lost(tmp_path: Path) -> None:
    assert "too many at once" in (with_agent(tmp_path, {Kind.BEAT: b""}, 6000).reason or "")
    facts = links._encoder.encode(told(CARD))
    assert "too many facts" in (with_agent(tmp_path, {Kind.FACTS: facts}, 300).reason or "")
    bad = links._encoder.encode(told(replace(CARD, unified=True)))
    assert "malformed frame" in (with_agent(tmp_path, {Kind.FACTS: bad}).reason or "")
    for room in (-1, 1 << 60, math.nan, math.inf, "much"):
        store = {"bytes": 0, "room": room}
        bad = links._encoder.encode(msgspec.to_builtins(told(CARD)) | {"store": store})
        assert "malformed frame" in (with_agent(tmp_path, {Kind.FACTS: bad}).reason or "")


def test_node_speaks_of_the_cards_only_that_it_is_asked_about(tmp_path: Path) -> None:
    facts = links._encoder.encode(told(CARD))
    probed = links._encoder.encode(Probed({"GPU-0": "broken", "GPU-of-another": "broken"}))
    found: dict[str, str] = {}

    async def ask(node: Node) -> None:
        found.update(await node.probe(["GPU-0"]))

    with_agent(tmp_path, {Kind.FACTS: facts}, answer=(Kind.PROBED, probed), then=ask)
    assert found == {"GPU-0": "broken"}


def test_node_whose_agent_ends_in_the_handshake_is_not_said_to_have_another_secret(
    tmp_path: Path,
) -> None:
    node = with_agent(tmp_path, {})
    assert (node.state, node.reason) == (
        "joining",
        "The node does not answer: the connection was closed.",
    )


def test_node_reports_faults_of_its_own_devices_only(tmp_path: Path) -> None:
    facts = NodeFacts(devices=(CARD,), readings={}, reports=(Report("0", 79), Report("x", 79)))
    node = with_agent(tmp_path, {Kind.FACTS: links._encoder.encode(facts)})
    assert [each.device for each in node.reports] == ["0"]


def test_frames_of_the_other_side_s_kinds_are_refused_before_they_are_kept() -> None:
    async def run() -> None:
        left, right = socket.socketpair()
        with right:
            link = Link(*await asyncio.open_connection(sock=left), FROM_AGENT)
            right.send(links._HEAD.pack(Kind.COMMANDS, MOST_BYTES[Kind.COMMANDS]))
            with pytest.raises(BadFrame, match="COMMANDS"):
                await link.receive()
            link.abort()

    asyncio.run(run())


def test_connection_outlives_a_gateway_that_stands_still_for_a_minute() -> None:
    """Its buffers fill, and the system ends a connection in which nothing moves for so long."""
    assert links._KEEP_ALIVE["TCP_USER_TIMEOUT"] > 60_000
