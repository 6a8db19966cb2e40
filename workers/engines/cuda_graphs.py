"""Runs steps of a decoder as CUDA graphs: a launch each, instead of hundreds from Python.

A graph has fixed shapes, so there is one for each of a few sizes, captured when the model is
loaded; a step runs in the smallest that holds it.
"""

from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

_LEAST_FREE = 1 << 30  #: bytes of a card; graphs of Bark take some hundred MB
_POSITIONS = (256, 512, 768)  #: and the longest

#: tokens (rows,), filled positions (rows,), positions to look at -> logits (rows, vocabulary)
Advance = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]

#: computes again over what the same tensors hold by then
Replay = Callable[[], torch.Tensor]

#: makes the replay of a step
Capture = Callable[[Replay], Replay]


class Graphs:
    """Holds the replays of a decoder's steps, one for each of a few sizes."""

    def __init__(
        self, advance: Advance, rows: int, longest: int, device: torch.device, capture: Capture
    ) -> None:
        self._rows = sizes(rows)
        self._lengths = [*(each for each in _POSITIONS if each < longest), longest]
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._filled = torch.zeros(rows, dtype=torch.long, device=device)
        self._captured: dict[tuple[int, int], Replay] = {}
        for count in reversed(self._rows):  # the first capture makes room for the others
            for length in self._lengths:
                step = partial(advance, self._tokens[:count], self._filled[:count], length)
                self._captured[count, length] = capture(step)

    def run(self, tokens: list[int], filled: list[int], top: int) -> torch.Tensor:
        """Return the logits of the first ``top`` rows; they are overwritten by the next run.

        ``tokens`` and ``filled`` are of all rows: a graph may be larger than the step, and
        writes behind what each of its rows has filled.
        """
        self._tokens.copy_(torch.tensor(tokens))
        self._filled.copy_(torch.tensor(filled))
        longest = max(filled[:top]) + 1
        replay = self._captured[at_least(self._rows, top), at_least(self._lengths, longest)]
        return replay()[:top]


def has_room(device: torch.device) -> bool:
    """True if a card has room for graphs beside what requests need: they hold memory for good, and
    only save time."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return free >= _LEAST_FREE


def cuda_capture() -> Capture:
    """Return a capture whose graphs share their memory; only one of them may run at a time, and
    what it gave is overwritten by the next.

    They also share the stream on which they are captured: for each stream that torch has used,
    it keeps a workspace of cuBLAS for good, which is 32 MiB on Hopper cards. After a capture that
    has failed there may be no other one, and steps can be computed without.
    """
    pool = torch.cuda.graph_pool_handle()
    side = torch.cuda.Stream()

    def capture(step: Replay) -> Replay:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up on a first run
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails to end leaves its stream in place: hence the context around it.
        current = torch.cuda.stream(torch.cuda.current_stream())
        try:
            with current, torch.cuda.graph(graph, pool=pool, stream=side):
                logits = step()
        except BaseException:
            _forget_capture(pool)
            raise

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay

    return capture


def _forget_capture(pool: Any) -> None:
    """Have torch's allocator forget a capture that has failed.

    Where an operation has broken the capture, torch raises before it tells its allocator of the
    end. That believes in the capture from then on, and every release of cached memory ends in an
    assertion (captures_underway.empty()).
    """
    with suppress(RuntimeError):  # it was told: the capture itself has ended well
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)


def sizes(most: int) -> list[int]:
    """Return the powers of two up to the most, and the most."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*powers, most]


def at_least(ordered: list[int], wanted: int) -> int:
    """Return the smallest that suffices."""
    return ordered[bisect_left(ordered, wanted)]
