"""Makes speech slower or faster without a change of pitch, by FFmpeg's atempo (WSOLA)."""

import math
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_MOST = 2.0  #: of one filter; a greater factor leaves samples out instead of blending them


class Stretcher:
    """Changes the speed of samples, piece by piece; a speed of 1 changes nothing."""

    def __init__(self, sample_rate: int, speed: float) -> None:
        self._rate = sample_rate
        self._graph: Any = None
        if speed != 1.0:
            self._graph = _graph(sample_rate, speed)

    def push(self, samples: Samples) -> Samples:
        """Stretch some samples; returns those that can be played by now."""
        if self._graph is None or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "flt", "mono")
        frame.sample_rate = self._rate
        self._graph.push(frame)
        return self._pull()

    def finish(self, samples: Samples) -> Samples:
        """Stretch the last samples; returns all that is left."""
        ready = self.push(samples)
        if self._graph is None:
            return ready
        self._graph.push(None)
        return np.concatenate([ready, self._pull()])

    def _pull(self) -> Samples:
        found = [np.zeros(0, np.float32)]
        while True:
            try:
                found.append(self._graph.pull().to_ndarray().reshape(-1))
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(found)


def _graph(sample_rate: int, speed: float) -> Any:
    count = max(1, math.ceil(abs(math.log(speed, _MOST)) - 1e-9))
    graph = Graph()
    parts = [graph.add_abuffer(sample_rate=sample_rate, format="flt", layout="mono")]
    parts += [graph.add("atempo", f"{speed ** (1 / count):.6f}") for _ in range(count)]
    parts += [graph.add("aformat", "sample_fmts=flt"), graph.add("abuffersink")]
    for before, after in pairwise(parts):
        before.link_to(after)
    graph.configure()
    return graph
