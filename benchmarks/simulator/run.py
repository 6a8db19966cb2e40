"""Runs one trace through one policy, in virtual time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from benchmarks.simulator.books import Books, Use
from benchmarks.simulator.clock import VirtualLoop
from benchmarks.simulator.lru import Lru
from benchmarks.simulator.ours import Ours
from benchmarks.simulator.outcome import Outcome, Sample
from benchmarks.simulator.pool import SimulatedPool, prompt_for
from benchmarks.simulator.traces import Arrival, Crash, Trace
from bitinglip import errors
from bitinglip.scheduling.job import Job
from bitinglip.scheduling.queue.priority import priority_of, tier_of
from bitinglip.settings import Settings
from workers.protocol import Sampling, TextJob


class Policy(Protocol):
    """Decides what runs where and when."""

    pool: SimulatedPool

    async def answer(self, job: Job) -> Outcome:
        """Run a job to its end. Raises what it is refused with."""
        ...

    async def watch(self) -> None:
        """Work in the background, for as long as the simulation."""
        ...

    def held(self) -> int: ...
    async def close(self) -> None: ...


POLICIES: dict[str, Callable[[Settings, Books, Callable[[], float]], Policy]] = {
    "ours": Ours,
    "lru": Lru,
}


@dataclass(frozen=True, slots=True)
class Run:
    """Holds what came of a run."""

    policy: str
    samples: list[Sample]  #: as they arrived
    seconds: float  #: simulated, until the last request had ended
    real_seconds: float
    loads: int
    load_seconds: float
    evictions: int
    over_commits: int
    left: int  #: requests still held when all had ended; a leak unless 0
    use: dict[str, Use]


def simulate(settings: Settings, trace: Trace, policy: str = "ours") -> Run:
    """Drive a trace, faster than real time, until its last request has ended."""
    began = perf_counter()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_simulate(settings, trace, policy, began))


async def _simulate(settings: Settings, trace: Trace, name: str, began: float) -> Run:
    loop = asyncio.get_running_loop()
    sizes = {f"fake{n}": each.memory_bytes for n, each in enumerate(settings.devices.fake)}
    books = Books(sizes, loop.time)
    policy = POLICIES[name](settings, books, loop.time)
    watching = asyncio.create_task(policy.watch())
    driving = asyncio.create_task(_drive(settings, trace, policy))
    await asyncio.wait([watching, driving], return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        await watching  # it does not end by itself: tell what ended it
    samples = await driving
    seconds, use = loop.time(), books.use()
    run = Run(
        policy=name,
        samples=samples,
        seconds=seconds,
        real_seconds=perf_counter() - began,
        loads=books.loads,
        load_seconds=books.load_seconds,
        evictions=books.evictions,
        over_commits=books.over_commits,
        left=policy.held(),
        use=use,
    )
    watching.cancel()
    await policy.close()
    return run


async def _drive(settings: Settings, trace: Trace, policy: Policy) -> list[Sample]:
    loop = asyncio.get_running_loop()
    requests: list[asyncio.Task[Sample]] = []
    async with asyncio.TaskGroup() as group:
        for event in trace:
            if (pause := event.at - loop.time()) > 0:
                await asyncio.sleep(pause)
            if isinstance(event, Crash):
                policy.pool.crash(event.crash)
            else:
                job = _job(settings, event, len(requests))
                requests.append(group.create_task(_request(policy, event, job)))
    return [request.result() for request in requests]


async def _request(policy: Policy, arrival: Arrival, job: Job) -> Sample:
    loop = asyncio.get_running_loop()
    began, refused = loop.time(), False
    try:
        outcome = await policy.answer(job)
    except errors.BitingLipError as error:
        refused, outcome = True, Outcome(0.0, errors.answer(error).code)
    return Sample(
        at=arrival.at,
        key=arrival.key,
        tier=arrival.tier,
        model=arrival.model,
        refused=refused,
        wait=outcome.wait,
        ended=outcome.ended,
        seconds=loop.time() - began,
    )


def _job(settings: Settings, arrival: Arrival, number: int) -> Job:
    work = TextJob(
        id=f"task-{number:08}",
        prompt=prompt_for(arrival.tokens, arrival.prompt_tokens),
        sampling=Sampling(max_tokens=arrival.max_tokens),
        stream=False,
    )
    return Job(
        work=work,
        model=arrival.model,
        key_id=arrival.key,
        timeout=settings.server.request_timeout,
        priority=priority_of(tier_of(settings.limits.tiers, arrival.tier)),
    )
