"""Makes and reads traces of requests. The same seed gives the same requests.

A trace file holds one JSON object a line: an arrival, with the fields of ``Arrival``, or
``{"at": SECONDS, "crash": MODEL}``.
"""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

Tier = Literal["free", "pro", "enterprise", "operator"]
_TIERS: tuple[tuple[Tier, int], ...] = (("free", 70), ("pro", 25), ("enterprise", 5))  #: percent
_LONGEST_ANSWER = 512  #: what clients ask for at most; few answers are so long
_LONGEST_PROMPT = 4000


class Arrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds a request; ``at`` in seconds from the beginning."""

    at: float
    model: str
    key: str = "k0"
    tier: Tier = "free"
    prompt_tokens: int = 100
    tokens: int = 100  #: that the answer has
    max_tokens: int = _LONGEST_ANSWER  #: that the client allows


class Crash(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kills all workers of a model."""

    at: float
    crash: str


Trace = list[Arrival | Crash]


@dataclass(frozen=True, slots=True)
class Mix:
    """Holds what the made-up traces are made of."""

    models: Sequence[str]
    clients: int
    seconds: float
    rate: float  #: requests per second, over all clients
    seed: int = 0


def make(name: str, mix: Mix) -> Trace:
    """Return the trace of that name, or of that file, by time. Raises ValueError."""
    if name in TRACES:
        return sorted(TRACES[name](mix, random.Random(mix.seed)), key=lambda event: event.at)
    trace = read(Path(name))
    for event in trace:
        model = event.model if isinstance(event, Arrival) else event.crash
        if model not in mix.models:
            raise ValueError(f"{name}: there is no model {model!r} in this simulation")
    return trace


def read(path: Path) -> Trace:
    """Read a trace file. Raises ValueError with the line at fault."""
    trace: Trace = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            crashes = isinstance(event, dict) and "crash" in event
            trace.append(
                msgspec.convert(event, Crash) if crashes else msgspec.convert(event, Arrival)
            )
        except (ValueError, msgspec.ValidationError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return sorted(trace, key=lambda event: event.at)


# ---- the made-up ones --------------------------------------------------------------------------


def alternating(mix: Mix, _draw: random.Random) -> Iterator[Arrival]:
    """Yield one request for each model by turns, evenly: the worst there is for plain LRU."""
    turns = itertools.cycle(mix.models)
    for number in range(int(mix.seconds * mix.rate)):
        key = f"k{number % mix.clients}"
        yield Arrival(at=number / mix.rate, model=next(turns), key=key)


def mixed(mix: Mix, draw: random.Random) -> Iterator[Arrival]:
    """Yield Poisson arrivals; the n-th model is asked for 1/n as often as the first."""
    weights = [1 / rank for rank in range(1, len(mix.models) + 1)]
    for at in _poisson(mix.rate, mix.seconds, draw):
        (model,) = draw.choices(mix.models, weights)
        yield _arrival(mix, draw, at, model)


def burst(mix: Mix, draw: random.Random) -> Iterator[Arrival]:
    """Write quiet, and each minute four fifths of its requests within two seconds for one model."""
    quiet = Mix(mix.models, mix.clients, mix.seconds, mix.rate / 5, mix.seed)
    yield from mixed(quiet, draw)
    for minute in range(math.ceil(mix.seconds / 60)):
        model = draw.choice(mix.models)
        for _ in range(int(mix.rate * 60 * 4 / 5)):
            at = 60 * minute + draw.uniform(10, 12)
            if at < mix.seconds:
                yield _arrival(mix, draw, at, model)


def heavy(mix: Mix, draw: random.Random) -> Iterator[Arrival]:
    """Yield half of all requests from one key, a minute's worth at once, and the others evenly."""
    light = Mix(mix.models, mix.clients, mix.seconds, mix.rate / 2, mix.seed)
    yield from mixed(light, draw)
    for minute in range(math.ceil(mix.seconds / 60)):
        for _ in range(int(mix.rate * 60 / 2)):
            tokens, prompt = _lengths(draw)
            yield Arrival(
                at=60.0 * minute,
                model=mix.models[0],
                key="heavy",
                prompt_tokens=prompt,
                tokens=tokens,
            )


def tiers(mix: Mix, draw: random.Random) -> Iterator[Arrival]:
    """Yield Poisson arrivals for one model; each tier sends as much as the others."""
    names: tuple[Tier, ...] = ("free", "pro", "enterprise")
    for at in _poisson(mix.rate, mix.seconds, draw):
        tier = draw.choice(names)
        tokens, prompt = _lengths(draw)
        key = f"{tier}-{draw.randrange(max(1, mix.clients // len(names)))}"
        yield Arrival(
            at=at,
            model=mix.models[0],
            key=key,
            tier=tier,
            prompt_tokens=prompt,
            tokens=tokens,
        )


TRACES: dict[str, Callable[[Mix, random.Random], Iterator[Arrival]]] = {
    each.__name__: each for each in (alternating, mixed, burst, heavy, tiers)
}


def _poisson(rate: float, seconds: float, draw: random.Random) -> Iterator[float]:
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def _arrival(mix: Mix, draw: random.Random, at: float, model: str) -> Arrival:
    client = draw.randrange(mix.clients)
    tokens, prompt = _lengths(draw)
    return Arrival(
        at=at,
        model=model,
        key=f"k{client}",
        tier=_tier_of(client),
        prompt_tokens=prompt,
        tokens=tokens,
    )


def _tier_of(client: int) -> Tier:
    """Return the tier of a client, which keeps it; of each hundred so many have each."""
    place = client * 37 % 100  # spreads the tiers over few clients too
    for tier, percent in _TIERS:
        place -= percent
        if place < 0:
            return tier
    return "free"


def _lengths(draw: random.Random) -> tuple[int, int]:
    """Return tokens of the answer and of the prompt: mostly short, seldom long."""
    tokens = min(_LONGEST_ANSWER, 1 + int(draw.lognormvariate(4.4, 0.8)))
    prompt = min(_LONGEST_PROMPT, 1 + int(draw.lognormvariate(5.0, 1.0)))
    return tokens, prompt
