"""Steps of a decoder as CUDA graphs: a launch each, instead of hundreds from Python.

A graph has fixed shapes, so there is one for each of a few sizes, captured when the model is
loaded; a step runs in the smallest that holds it.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

_POSITIONS = (256, 512, 768)  #: and the longest

#: tokens (rows,), filled positions (rows,), positions to look at -> logits (rows, vocabulary)
Advance = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


class Graphs:
    def __init__(self, advance: Advance, rows: int, longest: int, device: torch.device) -> None:
        self._advance = advance
        self._rows = sizes(rows)
        self._lengths = [*(each for each in _POSITIONS if each < longest), longest]
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._filled = torch.zeros(rows, dtype=torch.long, device=device)
        self._captured: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        for count in reversed(self._rows):
            for length in self._lengths:
                self._captured[count, length] = self._capture(count, length, pool)

    def run(self, tokens: list[int], filled: list[int], longest: int) -> torch.Tensor:
        """Logits of the first ``len(tokens)`` rows; they are overwritten by the next run."""
        count = len(tokens)
        self._tokens[:count] = torch.tensor(tokens)
        self._filled[:count] = torch.tensor(filled)
        graph, logits = self._captured[
            at_least(self._rows, count), at_least(self._lengths, longest)
        ]
        graph.replay()
        return logits[:count]

    def _capture(
        self, count: int, length: int, pool: Any
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        tokens, filled = self._tokens[:count], self._filled[:count]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the library has no types here
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up on a first run
            self._advance(tokens, filled, length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = self._advance(tokens, filled, length)
        return graph, logits


def sizes(most: int) -> list[int]:
    """1, 2, 4, .. and the most."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*powers, most]


def at_least(ordered: list[int], wanted: int) -> int:
    """The smallest that suffices."""
    return ordered[bisect_left(ordered, wanted)]
