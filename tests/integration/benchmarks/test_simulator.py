"""The real scheduling in virtual time, and the simulator that it is measured with."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.simulator import traces
from benchmarks.simulator.__main__ import main
from benchmarks.simulator.batch import Batch
from benchmarks.simulator.books import Books
from benchmarks.simulator.clock import VirtualLoop
from benchmarks.simulator.outcome import COMPLETED, Sample
from benchmarks.simulator.report import facts, table
from benchmarks.simulator.run import Run, simulate
from benchmarks.simulator.scenario import settings_for, sizes
from benchmarks.simulator.traces import Arrival, Crash, Mix, Trace
from bitinglip.settings import Settings

pytestmark = pytest.mark.long_file
ROOT = Path(__file__).parents[3]
GB = 10**9
LOAD = 1 + 10 / 3  #: seconds that a model of 10 GB takes
RESIDENCY = 4 * LOAD  #: that it keeps its place in use; less than the 20 s of the settings
EXIT = 0.3
SLOWEST = 25  #: tokens a second of a request in a full batch


def three_on_one(*sets: str) -> Settings:
    """Plan for three models of 10 GB on a device of 24 GB: two fit."""
    return settings_for([24 * GB], 3, [10 * GB], sets)


def bound(longest_answer: float) -> float:
    """Return the longest wait in seconds, with three models and two places: another model loads,
    has its time, finishes what it runs and is evicted; then ours loads."""
    return LOAD + RESIDENCY + longest_answer / SLOWEST + EXIT + LOAD


def mix_of(settings: Settings, *, rate: float, seconds: float = 600, seed: int = 0) -> Mix:
    return Mix(list(settings.models), clients=100, seconds=seconds, rate=rate, seed=seed)


def longest(samples: Sequence[Sample]) -> float:
    return max(sample.wait for sample in samples)


def all_served(run: Run) -> bool:
    return run.left == 0 and all(sample.ended == COMPLETED for sample in run.samples)


# ---- what the scheduling promises --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_eviction_under_mixed_load_on_too_small_a_device(seed: int) -> None:
    settings = three_on_one()
    run = simulate(settings, traces.make("mixed", mix_of(settings, rate=3, seed=seed)))
    assert len(run.samples) > 1500
    assert all_served(run)
    assert run.over_commits == 0
    assert longest(run.samples) <= bound(longest_answer=512 + 4000 / 20)


def test_eviction_shares_loads_of_alternating_clients_where_plain_lru_loads_for_each() -> None:
    settings = three_on_one()
    trace = traces.make("alternating", mix_of(settings, rate=0.5))
    ours, lru = simulate(settings, trace, "ours"), simulate(settings, trace, "lru")
    assert all_served(ours)
    assert all_served(lru)
    assert ours.over_commits == lru.over_commits == 0
    assert lru.loads == len(trace)
    assert ours.loads <= lru.loads / 3
    assert longest(ours.samples) <= bound(longest_answer=105)
    assert longest(ours.samples) < longest(lru.samples) / 10


def test_fairness_of_a_key_with_two_hundred_waiting_costs_another_one_batch() -> None:
    settings = settings_for([24 * GB], 1, [10 * GB], ["models.m0.fake.batch_size=8"])
    warm = Arrival(at=0, model="m0", tokens=1)
    light = Arrival(at=11, model="m0", key="light", tokens=50)
    flood: Trace = [Arrival(at=10, model="m0", key="heavy", tokens=50) for _ in range(200)]
    alone = simulate(settings, [warm, light]).samples[-1]
    beside = simulate(settings, [warm, *flood, light])
    by_arrival = simulate(settings, [warm, *flood, light], "lru").samples[-1]
    batch = 55 / SLOWEST
    assert all_served(beside)
    assert beside.samples[-1].wait <= alone.wait + batch
    assert by_arrival.wait > 20 * batch


def test_tiers_that_are_higher_wait_less_and_the_lowest_is_not_starved() -> None:
    settings = settings_for([24 * GB], 1, [10 * GB], ["models.m0.fake.batch_size=8"])
    run = simulate(settings, traces.make("tiers", mix_of(settings, rate=2, seconds=180)))
    waits = {tier: found["p95"] for tier, found in facts(run)["waits"].items()}
    assert all_served(run)
    assert waits["enterprise"] < waits["pro"] < waits["free"]


def test_replicas_share_the_work() -> None:
    trace: Trace = [Arrival(at=n / 6, model="m0", key=f"k{n}") for n in range(360)]

    def served_by(replicas: int) -> Run:
        sets = [f"models.m0.replicas={replicas}", "models.m0.fake.batch_size=16"]
        return simulate(settings_for([12 * GB] * 2, 1, [10 * GB], sets), trace)

    one, two = served_by(1), served_by(2)
    assert all_served(one)
    assert all_served(two)
    assert one.use["fake1"].busy == 0
    assert two.use["fake0"].busy == pytest.approx(two.use["fake1"].busy, rel=0.1)
    assert longest(two.samples) < longest(one.samples) / 2


def test_retry_runs_again_what_a_dead_worker_ran() -> None:
    settings = three_on_one()
    trace: Trace = [Arrival(at=n / 4, model="m0", key=f"k{n}") for n in range(80)]
    run = simulate(settings, sorted([*trace, Crash(10.1, "m0")], key=lambda event: event.at))
    assert all_served(run)
    assert run.loads == 2
    assert run.over_commits == 0


def test_multi_device_model_is_split() -> None:
    settings = settings_for([24 * GB] * 2, 1, [30 * GB])
    run = simulate(settings, [Arrival(at=n, model="m0") for n in range(60)])
    assert all_served(run)
    assert run.over_commits == 0
    assert run.use["fake0"] == run.use["fake1"]
    assert run.use["fake0"].memory == pytest.approx(15 / 24, rel=0.01)


def test_placement_lets_small_models_keep_no_large_one_out() -> None:
    """All in steady use; the large one fits only if all small ones have left."""
    settings = settings_for([48 * GB], 6, [40 * GB, *[14 * GB] * 5])
    run = simulate(settings, traces.make("alternating", mix_of(settings, rate=0.6)))
    assert all_served(run)
    assert longest(run.samples) <= 6 * bound(longest_answer=105)  # a turn of each at the worst


def test_placement_on_the_most_crowded_machine_never_over_commits() -> None:
    settings = settings_for(sizes("8x80GB"), 50, sizes("6GB,14GB,28GB,45GB"))
    mix = Mix(list(settings.models), clients=1000, seconds=30, rate=1000 / 30)
    run = simulate(settings, traces.make("mixed", mix))
    assert run.over_commits == 0
    assert all_served(run)
    assert all(use.memory > 0.5 for use in run.use.values())


# ---- the simulator itself ----------------------------------------------------------------------


def test_simulator_prints_the_same_figures_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--trace burst --devices 24GB --models 3 --sizes 10GB --clients 30 --minutes 3"
    asked = [*words.split(), "--policy", "both", "--json"]

    def other_process(seed: str) -> list[dict[str, object]]:
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.simulator", *asked],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        return _without_speed(told.stdout)

    assert main(asked) == 0
    here = _without_speed(capsys.readouterr().out)
    assert here == other_process("1")
    assert main([*asked, "--seed", "1"]) == 0
    assert here != _without_speed(capsys.readouterr().out)


def _without_speed(text: str | bytes) -> list[dict[str, object]]:
    runs: list[dict[str, object]] = json.loads(text)
    for run in runs:
        del run["real"]
    return runs


def test_simulator_table_is_aligned_and_says_what_was_asked_for() -> None:
    settings = three_on_one()
    trace: Trace = [Arrival(at=0, model="m0"), Arrival(at=1, model="m1", tier="pro")]
    runs = [simulate(settings, trace, policy) for policy in ("ours", "lru")]
    lines = table(runs).splitlines()
    assert len({len(line) for line in lines}) == 1
    for name in ("loads", "evictions", "over-commits", "wait of pro", "fake0: memory, busy"):
        assert any(line.startswith(name) for line in lines), name


@pytest.mark.parametrize(
    "words",
    ["--trace nobody", "--devices 8x80", "--set residency.nonsense=1", "--set models.m0.pin=7"],
)
def test_simulator_refuses_wrong_arguments(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err


def test_plain_lru_evicts_what_was_used_longest_ago() -> None:
    asked = ["m0", "m1", "m0", "m2", "m0", "m1"]  # m2 takes the place of m1, m1 that of m2
    trace: Trace = [Arrival(at=20.0 * n, model=model) for n, model in enumerate(asked)]
    run = simulate(three_on_one(), trace, "lru")
    assert all_served(run)
    assert [sample.wait > 1 for sample in run.samples] == [True, True, False, True, False, True]
    assert (run.loads, run.evictions) == (4, 2)


def test_virtual_clock_jumps_and_a_standstill_is_told() -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        seen: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, loop.time()))

        async def both() -> None:
            await asyncio.gather(sleeper("b", 86_400), sleeper("a", 60))

        runner.run(both())
        assert seen == [("a", 60.0), ("b", 86_400.0)]

    async def for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualLoop()
    waiting = loop.create_task(for_ever())
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        loop.run_until_complete(waiting)
    waiting.cancel()
    loop.run_until_complete(asyncio.wait([waiting]))
    loop.close()


def test_batch_slows_down_beyond_its_knee() -> None:
    ended: dict[str, float] = {}

    async def three(knee: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        batch = Batch(10.0, knee, lambda jobs: ended.update(dict.fromkeys(jobs, loop.time())))
        for name, units in (("a", 10.0), ("b", 10.0), ("c", 10.0), ("gone", 5.0)):
            batch.add(name, units)
        assert batch.remove("gone")
        assert not batch.remove("gone")
        await asyncio.sleep(100)
        assert len(batch) == 0
        for name in ended:
            ended[name] -= began

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(three(knee=3))
        assert ended == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0})
        runner.run(three(knee=1))
        assert ended == pytest.approx({"a": 3.0, "b": 3.0, "c": 3.0})


def test_books_see_what_holds_too_much_or_promises_it() -> None:
    now = [0.0]
    books = Books({"fake0": 10}, lambda: now[0])
    books.take("one", {"fake0": 6})
    assert books.over_commits == 0
    books.take("two", {"fake0": 6})
    assert books.over_commits == 1
    books.give_back("two")
    books.promised = lambda: {"fake0": -1}
    books.check()
    assert books.over_commits == 2
    books.works("one", begins=True)
    now[0] = 4.0
    books.works("one", begins=False)
    now[0] = 16.0
    assert books.use()["fake0"].memory == pytest.approx(0.6)
    assert books.use()["fake0"].busy == pytest.approx(0.25)


@pytest.mark.parametrize("name", traces.TRACES)
def test_trace_depends_on_its_seed_alone(name: str) -> None:
    mix = Mix(["m0", "m1", "m2"], clients=10, seconds=180, rate=2)
    trace = traces.make(name, mix)
    assert trace == traces.make(name, mix)
    times = [event.at for event in trace]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 180
    assert len(trace) == pytest.approx(360, rel=0.25)


def test_trace_file_is_read_by_time_and_told_where_it_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"at": 5, "crash": "m0"}\n\n{"at": 1, "model": "m0", "tier": "pro"}\n')
    arrival = Arrival(at=1, model="m0", tier="pro")
    assert traces.read(file) == [arrival, Crash(5, "m0")]
    for line in ('{"at": 1}', '{"at": 1, "model": "m0", "size": 3}', "nonsense", "[]"):
        file.write_text(f"\n{line}\n")
        with pytest.raises(ValueError, match=r"trace\.jsonl:2: "):
            traces.read(file)
    file.write_text('{"at": 1, "model": "m7"}\n')
    with pytest.raises(ValueError, match="no model 'm7'"):
        traces.make(str(file), Mix(["m0"], clients=1, seconds=1, rate=1))
