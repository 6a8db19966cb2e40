"""Records the figures of one part of the check."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from workers.protocol import DeviceKind


@dataclass(frozen=True, slots=True)
class Figure:
    """Holds one measured number, or one fact in words."""

    name: str
    value: float | str
    unit: str = ""
    share: float | None = None  #: of the ceiling, 0 to 1
    ceiling: str | None = None  #: which one: a name that the part ``ceilings`` measured
    expected: str = ""  #: on an H100 or H200, where it was worked out beforehand
    note: str = ""


@dataclass(slots=True)
class Recorder:
    """Appends each figure to a file at once, so that a part that is killed keeps those it had."""

    device: DeviceKind
    shape: str  #: "real" or "tiny": the size of the models
    folder: Path  #: work files that the parts share: models, sockets, logs
    path: Path  #: one figure a line, as JSON
    ceilings: dict[str, float] = field(default_factory=dict)  #: by name, in SI units
    end: float = math.inf  #: when the part is killed, by ``time.monotonic``

    @property
    def tiny(self) -> bool:
        return self.shape == "tiny"

    @property
    def left(self) -> float:
        """Return the seconds until the part is killed."""
        return self.end - time.monotonic()

    def figure(
        self,
        name: str,
        value: float | str,
        unit: str = "",
        *,
        achieved: tuple[str, float] | None = None,
        expected: str = "",
        note: str = "",
    ) -> None:
        """Record a figure. ``achieved``: the name of a ceiling and the rate that was reached."""
        share, ceiling = None, None
        if achieved is not None and achieved[0] in self.ceilings:
            ceiling, rate = achieved
            share = rate / self.ceilings[ceiling]
        figure = Figure(name, value, unit, share, ceiling, expected, note)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(figure)) + "\n")
        print(f"{name}: {value if isinstance(value, str) else f'{value:.4g}'} {unit}", flush=True)

    def ceiling(self, name: str, rate: float) -> None:
        """Record what the device can do at most; parts that follow relate their figures to it."""
        self.ceilings[name] = rate

    @contextmanager
    def seconds(self, name: str, *, expected: str = "", note: str = "") -> Iterator[None]:
        """Record how long the body of a ``with`` takes, the card's work included."""
        began = time.perf_counter()
        yield
        self.synchronize()
        self.figure(name, time.perf_counter() - began, "s", expected=expected, note=note)

    def synchronize(self) -> None:
        """Wait until the card has done what was asked of it."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def read_figures(path: Path) -> list[Figure]:
    """Return the figures of a part, also of one that was killed in the middle of a line."""
    figures = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            figures.append(Figure(**json.loads(line)))
        except json.JSONDecodeError:
            break
    return figures


def read_ceilings(folder: Path) -> dict[str, float]:
    """Read the rates that the part ``ceilings`` measured; empty if it has not run."""
    path = folder / "ceilings.json"
    return json.loads(path.read_text()) if path.exists() else {}
