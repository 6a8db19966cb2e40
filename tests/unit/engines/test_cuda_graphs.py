"""Pools and streams that captures of CUDA graphs share, by stand-ins for the driver's objects."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from workers.engines.cuda_graphs import Graphs, cuda_capture, has_room


class Stream:
    """Counts those that are made, as torch keeps a workspace for each."""

    made = 0

    def __init__(self) -> None:
        Stream.made += 1

    def wait_stream(self, _other: "Stream") -> None:
        """Do nothing: no work is ever queued on it."""


class Graph:
    """Stands in for a CUDA graph that is never replayed."""


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Provide the (pool, stream) of each capture."""
    captures: list[tuple[Any, Any]] = []
    current = Stream()
    Stream.made = 0

    @contextmanager
    def graph(_graph: Graph, *, pool: Any, stream: Any) -> Iterator[None]:
        captures.append((pool, stream))
        yield

    @contextmanager
    def stream(_side: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return captures


def test_cuda_graphs_of_several_stages_share_one_stream_and_one_pool(
    used: list[tuple[Any, Any]],
) -> None:
    def advance(tokens: torch.Tensor, _filled: torch.Tensor, _longest: int) -> torch.Tensor:
        return tokens[:, None].float()

    capture = cuda_capture()
    for _ in range(2):
        Graphs(advance, 16, 1024, torch.device("cpu"), capture)
    assert len(used) == 2 * 5 * 4  # stages, sizes of rows, sizes of positions
    assert len(set(used)) == 1
    assert Stream.made == 1


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("is_broken", [True, False])
def test_allocator_is_told_of_a_capture_that_failed(
    monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """Where an operation breaks a capture torch does not tell it; a step that raises does no harm.

    The allocator counts captures as torch's does, and asserts that none is left.
    """
    underway: list[Any] = []

    @contextmanager
    def graph(_graph: Graph, *, pool: Any, **_where: Any) -> Iterator[None]:
        underway.append(pool)
        try:
            yield
        finally:
            if is_broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error")
            underway.remove(pool)

    def end(_device: int, pool: Any) -> None:
        if pool not in underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        underway.remove(pool)

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _device, _pool: None, raising=False)
    calls = 0

    def step() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first call only warms up
            raise ValueError("a step that cannot be captured")
        return torch.zeros(1)

    with pytest.raises((RuntimeError, ValueError)):
        cuda_capture()(step)
    assert calls == 2
    assert not underway


@pytest.mark.parametrize(("free", "room"), [(8 << 30, True), (1 << 30, True), (1 << 29, False)])
def test_graphs_are_left_out_where_a_card_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, free: int, room: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 12 << 30))
    assert has_room(torch.device("cuda")) is room
    assert has_room(torch.device("cpu"))
