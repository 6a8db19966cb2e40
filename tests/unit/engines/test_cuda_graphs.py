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


@pytest.mark.parametrize(("free", "room"), [(8 << 30, True), (1 << 30, True), (1 << 29, False)])
def test_graphs_are_left_out_where_a_card_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, free: int, room: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 12 << 30))
    assert has_room(torch.device("cuda")) is room
    assert has_room(torch.device("cpu"))
