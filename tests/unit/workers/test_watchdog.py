"""The watchdog counts its own looks."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from tests.support.pool_harness import fake
from workers.framing import decode_commands, encode_commands
from workers.protocol import (
    Activity,
    Cancel,
    Cancelled,
    Command,
    Failed,
    Load,
    Ready,
    Sampling,
    TextChoice,
    TextDone,
    TextJob,
)
from workers.watchdog import Watchdog
from workers.worker import Worker

DONE = TextDone(
    id="a",
    choices=(TextChoice(text="", finish_reason="stop"),),
    prompt_tokens=1,
    completion_tokens=1,
)
DOG = Watchdog(heartbeat_timeout=2, load_timeout=4)


class Process:
    """Implements what the watchdog reads of a process."""

    read = 0
    stopped = False

    def bytes_read(self) -> int:
        return self.read

    def is_stopped(self) -> bool:
        return self.stopped


def worker(state: str, spec: Load | None = None, **ready: Any) -> Worker:
    made = Worker(cast("Any", Process()), state, spec=spec)
    made.ready = Ready(slots=1, **ready) if ready else None
    return made


def looks(one: Worker, dog: Watchdog = DOG) -> float:
    """Return the seconds that the watchdog has counted when it ends the worker."""
    for number in range(1, 1000):
        if dog.tick(one):
            return number * dog.interval
    raise AssertionError("it is never ended")


def test_silence_ends_a_worker_after_the_heartbeat_timeout() -> None:
    assert looks(worker("ready")) == 2 + DOG.interval
    assert looks(worker("draining")) == 2 + DOG.interval


def test_silence_is_forgotten_when_the_worker_speaks() -> None:
    one = worker("ready")
    for _ in range(100):
        assert DOG.tick(one) is None
        one.silence = 0.0


def test_silence_may_last_as_long_as_a_step_of_the_engine() -> None:
    assert looks(worker("ready", step_timeout=10.0)) == 10 + DOG.interval
    assert looks(worker("ready", step_timeout=1.0)) == 2 + DOG.interval


def test_cancelled_job_that_does_not_end_ends_its_worker() -> None:
    one = worker("ready")
    one.cancelled["a"] = one.cancelled["b"] = 0.0
    for number in range(1, 1000):
        one.silence = 0.0
        if number == 5:
            del one.cancelled["a"]
        if cause := DOG.tick(one):
            break
    assert (number * DOG.interval, cause) == (8.5, "did not end a cancelled job within 8 s")


def test_cancelled_job_may_take_some_of_the_longest_steps() -> None:
    one = worker("ready", step_timeout=10.0)
    one.cancelled["a"] = 0.0
    for _ in range(80):
        one.silence = 0.0
        assert DOG.tick(one) is None
    one.silence = 0.0
    assert DOG.tick(one) == "did not end a cancelled job within 40 s"


def test_load_ends_after_the_load_timeout_without_progress() -> None:
    one = worker("loading", fake())
    assert DOG.tick(one) is None
    assert looks(one) == 4
    assert DOG.tick(one) == "made no progress with its load for 4 s"


def test_load_timeout_spares_a_load_that_tells_of_progress() -> None:
    dog, one = Watchdog(heartbeat_timeout=30, load_timeout=25), worker("loading", fake())
    for look in range(1800):
        one.progress = look // 20 * 20 / 1800
        assert dog.tick(one) is None
    one.progress = 0.4  # and stays there
    one.seen_progress = 0.4
    assert looks(one, dog) <= 26


def test_load_timeout_spares_a_load_that_reads_its_files() -> None:
    dog, one = Watchdog(heartbeat_timeout=30, load_timeout=25), worker("loading", fake())
    process = cast("Process", one.handle)
    for _ in range(1800):
        process.read += 100_000
        assert dog.tick(one) is None
    assert looks(one, dog) <= 26 + 10


@pytest.mark.parametrize("state", ["starting", "warm", "loading"])
@pytest.mark.parametrize("spec", [fake(), None])
def test_load_or_spare_whose_process_is_stopped_ends_after_the_heartbeat_timeout(
    state: str, spec: Load | None
) -> None:
    dog, one = Watchdog(heartbeat_timeout=30, load_timeout=600), worker(state, spec)
    process = cast("Process", one.handle)
    process.stopped = True
    for _ in range(30):
        assert dog.tick(one) is None
    process.stopped = False  # it goes on, as after a look into it
    assert dog.tick(one) is None
    process.stopped = True
    assert looks(one, dog) == 31
    assert dog.tick(one) == "was stopped by a signal for 30 s and did not go on"


def test_load_that_reads_next_to_nothing_makes_no_progress() -> None:
    dog, one = Watchdog(heartbeat_timeout=30, load_timeout=25), worker("loading", fake())
    looked = 0
    while (cause := dog.tick(one)) is None:
        looked += 1
        cast("Process", one.handle).read += 1000
        one.progress += 1e-6
    assert (looked, cause) == (25, "made no progress with its load for 25 s")


def test_step_timeout_is_longer_for_the_first_job_on_a_card_only() -> None:
    """Kernels are built and loaded, and libraries choose among them."""
    dog = Watchdog(heartbeat_timeout=30, load_timeout=600)
    spec = msgspec.structs.replace(fake(), device="cuda")
    one = worker("ready", spec, step_timeout=60.0)
    for _ in range(90):
        assert dog.tick(one) is None
    one.note_final(Failed(id="a", code="OUT_OF_MEMORY", message=""))
    assert looks(one, dog) == 300 + 1 - 90
    one.silence = 0.0
    one.note_final(Cancelled(id="a"))
    assert looks(one, dog) == 301
    one.silence = 0.0
    one.note_final(DONE)
    assert looks(one, dog) == 61


@pytest.mark.parametrize(("own", "allowed"), [(0.0, 150), (120.0, 600), (700.0, 700)])
def test_first_job_on_a_card_has_a_bound(own: float, allowed: float) -> None:
    dog = Watchdog(heartbeat_timeout=30, load_timeout=600)
    spec = msgspec.structs.replace(fake(), device="cuda")
    assert looks(worker("ready", spec, step_timeout=own), dog) == allowed + 1
    assert looks(worker("ready", fake(), step_timeout=own), dog) == max(30, own) + 1


@pytest.mark.parametrize("state", ["starting", "warm"])
def test_spare_waits_for_its_model_as_long_as_it_has_to(state: str) -> None:
    one = worker(state)
    assert all(DOG.tick(one) is None for _ in range(100))
    one.spec = fake()
    assert looks(one) == 4 + DOG.interval


def test_step_timeout_is_longer_while_compiling_and_still_bounded() -> None:
    dog = Watchdog(heartbeat_timeout=30, load_timeout=100)
    for activity, seconds in (("compile", 1800), ("warmup", 600)):
        one = worker("ready")
        one.activity = cast("Activity", activity)
        assert dog_looks(one, dog) == (seconds + dog.interval, f"silent for {seconds} s")
        loading = worker("loading", fake())
        loading.activity = cast("Activity", activity)
        found = f"made no progress with its load for {seconds} s"
        assert dog_looks(loading, dog) == (seconds + dog.interval, found)


def dog_looks(one: Worker, dog: Watchdog) -> tuple[float, str]:
    for number in range(1, 10_000):
        if cause := dog.tick(one):
            return number * dog.interval, cause
    raise AssertionError("it is never ended")


def test_command_that_cannot_be_written_is_not_the_last_one() -> None:
    class Pipe(Process):
        def send(self, commands: Sequence[Command]) -> None:
            sent.append(encode_commands(commands))

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: faults.append(context)
        )
        one = Worker(cast("Any", Pipe()), "ready")
        sampling = Sampling(max_tokens=1)
        one.send(TextJob(id="a", sampling=sampling, template_kwargs={"large": 2**70}))
        await asyncio.sleep(0)
        one.send(Cancel(id="a"))
        await asyncio.sleep(0)

    sent: list[bytes] = []
    faults: list[dict[str, Any]] = []
    asyncio.run(run())
    assert [decode_commands(each) for each in sent] == [[Cancel(id="a")]]
    assert len(faults) == 1
