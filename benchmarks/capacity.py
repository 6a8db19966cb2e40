"""Computes what 1, 10 and 1,000 GPUs serve, and which part is the bottleneck.

    python -m benchmarks.capacity > docs/capacity.md

The cards' figures come from the simulator, which runs the server's own scheduling; those of the
other parts from measurements, each named beside its figure in ``PARTS``.
"""

import logging
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from benchmarks.simulator.report import facts
from benchmarks.simulator.run import Run, simulate
from benchmarks.simulator.scenario import settings_for, sizes
from benchmarks.simulator.traces import Arrival, Mix, make

_SECONDS = 300.0  #: in which requests of a run arrive
_PATIENCE = 5.0  #: seconds that nineteen of twenty requests may wait at most
_STEPS = 2  #: of the search between a rate that is served and one that is not
_BOX = 10  #: GPUs of one gateway, at most


class Fleet(NamedTuple):
    """Describes GPUs, and the models that are on those of one box."""

    gpus: int
    devices: str
    models: int
    sizes: str
    first: float  #: requests a second, where the search begins

    @property
    def boxes(self) -> int:
        return math.ceil(self.gpus / _BOX)


FLEETS = (
    Fleet(1, "80GB", 3, "6GB,14GB,28GB", 8.0),
    Fleet(10, "10x80GB", 32, "6GB,14GB,28GB,45GB", 40.0),
    Fleet(1000, "10x80GB", 32, "6GB,14GB,28GB,45GB", 40.0),
)


class Served(NamedTuple):
    """Holds what a box serves: requests and tokens a second, and how busy its cards are then."""

    rate: float
    tokens: float
    busy: float
    wait: float  #: seconds, of nineteen of twenty requests


class Part(NamedTuple):
    """Describes a part, by what its requests, tokens and gateways cost of it."""

    name: str
    limit: float  #: units a second
    per_request: float
    per_token: float
    per_gateway: float
    whole: bool  #: one for all boxes, else one for each
    unit: str
    source: str

    def load(self, served: Served, boxes: int) -> float:
        """Return the share of the part that is used; 1 is all of it."""
        own = served.rate * self.per_request + served.tokens * self.per_token + self.per_gateway
        return own * (boxes if self.whole else 1) / self.limit


PARTS = (
    Part(
        "a gateway's event loop",
        *(1.0, 276e-6, 5.6e-6, 0.01),
        whole=False,
        unit="seconds of one core: 276 us a request, 5.6 us a streamed token, 1 % for its own work",
        source="`python -m benchmarks.gateway`, RESULTS.md, Gateway",
    ),
    Part(
        "Redis",
        *(51_500.0, 2.0, 0.0, 1.0),
        whole=True,
        unit="scripts: one to take a place, one to give it back, one a second a gateway",
        source="`redis-benchmark` of a script of four commands, two cores at load 12",
    ),
    Part(
        "PostgreSQL's turn to write",
        *(91.0, 0.0, 0.0, 2.2),
        whole=True,
        unit="transactions: usage every half second a gateway, times of use every 5 s",
        source="two gateways' writes in turn, fsync on, two cores at load 12: 91 a second",
    ),
    Part(
        "PostgreSQL's work for heartbeats",
        *(1.0, 0.0, 0.0, 1.14e-3),
        whole=True,
        unit="seconds of a core: 0.78 ms a heartbeat, 0.35 ms a poll, each second per gateway",
        source="CPU time of PostgreSQL 15's processes under these statements",
    ),
)


def most_served(fleet: Fleet) -> Served:
    """Search the highest rate that a box serves without refusals, failures and long waits."""
    low, high = 0.0, fleet.first
    best = None
    while (found := _served(fleet, high)) is not None:
        best, low, high = found, high, high * 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if (found := _served(fleet, middle)) is None:
            high = middle
        else:
            best, low = found, middle
    if best is None:
        raise SystemExit("the simulated box serves nothing at the lowest rate")
    return best


def _served(fleet: Fleet, rate: float) -> Served | None:
    """Simulate a rate; None if it is too much."""
    settings = settings_for(sizes(fleet.devices), fleet.models, sizes(fleet.sizes))
    mix = Mix(
        models=list(settings.models), clients=int(rate * 30), seconds=_SECONDS, rate=rate, seed=0
    )
    trace = make("mixed", mix)
    run: Run = simulate(settings, trace, "ours")
    told = facts(run)
    waits = [wait["p95"] for wait in told["waits"].values()]
    if told["refused"] or told["failed"] or max(waits) > _PATIENCE:
        return None
    tokens = statistics.fmean(each.tokens for each in trace if isinstance(each, Arrival))
    busy = statistics.fmean(use["busy"] for use in told["devices"].values())
    return Served(rate, rate * tokens, busy, max(waits))


def page(found: Sequence[tuple[Fleet, Served]]) -> str:
    """Write the page."""
    rows = [
        f"| {fleet.gpus:,} | {fleet.boxes:,} | {fleet.boxes * own.rate:,.0f} | "
        f"{fleet.boxes * own.tokens:,.0f} | {own.busy:.0%} | {own.wait:.1f} s |"
        for fleet, own in found
    ]
    heads = " | ".join(f"at {fleet.gpus:,}" for fleet, _ in found)
    loads = []
    for part in PARTS:
        shares = [part.load(own, fleet.boxes) for fleet, own in found]
        loads.append(f"| {part.name} | " + " | ".join(f"{each:.1%}" for each in shares) + " |")
    first = [max(PARTS, key=lambda part: part.load(own, fleet.boxes)).name for fleet, own in found]
    text = [_HEAD, *rows, "", _PARTS_HEAD, f"| part | {heads} |", "|---" * (len(found) + 1) + "|"]
    text += [*loads, "| **busiest beside the cards** | " + " | ".join(first) + " |", "", _UNITS]
    text += [
        f"- **{part.name}**: {part.unit}. Limit {part.limit:g} a second: {part.source}."
        for part in PARTS
    ]
    return "\n".join([*text, "", _MEANING])


_HEAD = """# Capacity: 1, 10 and 1,000 GPUs, and their bottlenecks

`python -m benchmarks.capacity` writes this page. The cards' part is simulated: GPUs of 80 GB,
models of 6 to 45 GB, the simulator's `mixed` trace, its model of a batch (50 tokens/s of one
request by itself, 64 at once) and of loading (3 GB/s). The rate is the highest one at which nothing
is refused, nothing fails, and nineteen of twenty requests wait less than 5 s. It says how things
scale, not what your models do: measure those with `bitinglip bench`. A gateway has 10 GPUs at most;
1,000 are 100 such boxes, each with the same models: 3 on one GPU, 32 on ten, each once. Ten GPUs do
not serve ten times as much then: a few of the models are asked for most, and those are on one GPU
each; `models.<name>.replicas` is what spreads them. A card is busy while at least one request runs
on it, so a busy one may have room for more. The rate is searched in steps of a fifth: with the next
one requests were refused or waited longer, however short the waits before.

| GPUs | gateways | requests/s | tokens/s | cards busy | 95 % wait less than |
|---|---|---|---|---|---|"""
_PARTS_HEAD = "## Load on gateway, database and Redis\n"
_UNITS = "What is counted, and where the limit is from:\n"
_MEANING = """## Bottlenecks

- **On one box** the cards, long before anything else: then requests wait, and queues refuse.
- **Among many** the turn to write: all gateways write one after the other, and each writes what its
  keys used every half second, however little it serves. Above 100 % these writes come later (they
  are added up, so nothing is lost but what a kill takes), and asynchronous tasks, whose rows wait
  for the same turn, are refused after 5 s. The limit above was measured on a busy machine with two
  cores, where a write took 11 ms; a database whose disk answers in 1 ms has ten times as much.
- Asynchronous tasks add three writes each, keys that are made or changed one each: they take what
  is left.
- **Redis** has room for many times that.
- **Nodes of one Ray cluster** that several gateways use: a load takes 0.9 ms of a core more on its
  node, for the reservation, and each agent's look 0.7 ms a second (CPU time, ten gateways with
  eight models each); requests and tokens take nothing more. What gives way first there is RAM:
  every gateway has an agent and a spare of its own on every node, 190 MB together, beside what
  Ray's own processes take.
- Then make several fleets: each with its own database, and a proxy that knows which key is where.
"""


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    one, ten, many = FLEETS
    of_one, of_ten = most_served(one), most_served(ten)
    print(page([(one, of_one), (ten, of_ten), (many, of_ten)]), end="")


if __name__ == "__main__":
    main()
