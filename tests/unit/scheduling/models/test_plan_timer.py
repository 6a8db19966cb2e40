"""The timer of plans, on the event loop that the server runs on."""

import asyncio
import time

import uvloop

from bitinglip.scheduling.models.plan_timer import PlanTimer
from tests.support.wait import until


def test_plan_timer_takes_moments_that_pass_while_they_are_told() -> None:
    """uvloop gives a handle without a time for what is due; a plan must not be lost to that."""
    plans: list[int] = []

    def slow_clock() -> float:
        time.sleep(0.005)  # as another process may take the CPU
        return time.monotonic()

    async def run() -> None:
        timer = PlanTimer(lambda: plans.append(1), slow_clock)
        for _ in range(3):
            timer.at(0.0)
        await until(lambda: bool(plans))
        timer.close()

    uvloop.run(asyncio.wait_for(run(), 60))


def test_plan_timer_keeps_the_next_of_several_moments() -> None:
    async def run() -> float:
        plans: list[float] = []
        timer = PlanTimer(lambda: plans.append(time.monotonic()), time.monotonic)
        began = time.monotonic()
        for seconds in (60.0, 0.05, 30.0):
            timer.at(began + seconds)
        await until(lambda: bool(plans))
        timer.close()
        return plans[0] - began

    assert uvloop.run(asyncio.wait_for(run(), 60)) >= 0.05
