"""One timer of the event loop rings for all that wait, up to two steps late."""

import asyncio
import time
from contextvars import ContextVar

from bitinglip.coarse_timer import CoarseTimer

STEP = 0.01


def _rung(*seconds: float, discarded: tuple[int, ...] = ()) -> dict[int, float]:
    """Add items that are numbered; return after how long each has rung, until the last one has."""
    rung: dict[int, float] = {}

    async def run() -> None:
        done = asyncio.Event()
        began = time.monotonic()

        def ring(item: int) -> None:
            rung[item] = time.monotonic() - began
            if item == len(seconds) - 1:
                done.set()

        timer = CoarseTimer(ring, step=STEP)
        slots = [timer.add(item, after) for item, after in enumerate(seconds)]
        for item in discarded:
            timer.discard(item, slots[item])
        await asyncio.wait_for(done.wait(), 30)

    asyncio.run(run())
    return rung


def test_coarse_timer_rings_no_sooner_than_asked() -> None:
    asked = (0.0, 0.03, 0.005, 0.03, 0.06)
    rung = _rung(*asked)
    assert rung.keys() == {0, 1, 2, 3, 4}
    assert all(rung[item] >= after for item, after in enumerate(asked))


def test_coarse_timer_forgets_what_is_discarded() -> None:
    assert _rung(0.02, 0.02, 0.03, discarded=(0,)).keys() == {1, 2}


def test_coarse_timer_serves_one_event_loop_after_another() -> None:
    timer: CoarseTimer[asyncio.Event] = CoarseTimer(asyncio.Event.set, step=STEP)

    async def run() -> None:
        rung = asyncio.Event()
        slot = timer.add(rung, 0)
        await asyncio.wait_for(rung.wait(), 30)
        timer.discard(rung, slot)  # is no harm
        timer.add(asyncio.Event(), 60)  # is left over

    asyncio.run(run())
    asyncio.run(run())


def test_coarse_timer_goes_on_after_a_callback_that_fails() -> None:
    told: list[dict[str, object]] = []
    rung = asyncio.Event()

    def ring(item: str) -> None:
        if item == "wrong":
            raise RuntimeError
        rung.set()

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        timer = CoarseTimer(ring, step=STEP)
        timer.add("wrong", 0)
        timer.add("right", 2 * STEP)
        await asyncio.wait_for(rung.wait(), 30)

    asyncio.run(run())
    assert isinstance(told[0]["exception"], RuntimeError)


def test_coarse_timer_rings_in_no_request_s_context() -> None:
    request = ContextVar("request", default="none")
    seen: list[str] = []

    async def run() -> None:
        done = asyncio.Event()

        def ring(_: int) -> None:
            seen.append(request.get())
            if len(seen) == 2:
                done.set()

        timer = CoarseTimer(ring, step=STEP)
        request.set("one")
        timer.add(1, 0.0)
        timer.add(2, 3 * STEP)
        await asyncio.wait_for(done.wait(), 30)

    asyncio.run(run())
    assert seen == ["none", "none"]
