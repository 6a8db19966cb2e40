"""Faults on the real process tree: each ends as it should, and the made-up card's books balance."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from tests.support.awake import AwakeClock
from tests.support.scheduling_rig import ECHO, Rig, answer, job, with_settings
from tests.support.server import Server, alive, descendants, running_server
from tests.support.sse import iter_events
from tests.support.wait import eventually, until

GB = 1_000_000_000
GENERATE = "/api/v1/inference/text-generation"
SOON = 8  #: seconds without stalls, on a machine that is busy; the rule is two


# ---- a worker that fails while it loads --------------------------------------------------------


def loading(fault: str, **values: Any) -> dict[str, Any]:
    """Return settings of one fake model that fails to load, beside one that does not, on a made-up
    card."""
    fake = {"memory_bytes": 10 * GB, "faults": True}
    models = {ECHO: {"fake": {**fake, "load_fault": fault}}, "beside": {"engine": "fake"}}
    card = {"name": "card", "memory_bytes": 24 * GB}
    return {"models": models, "devices": {"fake": [card]}, **values}


@pytest.mark.parametrize(
    ("fault", "error", "cause"),
    [
        ("crash", errors.ModelLoadFailed, "exited with code 13"),
        ("garbage", errors.ModelLoadFailed, "malformed frame"),
        ("error", errors.ModelLoadFailed, "was told not to load"),
        ("oom", errors.OutOfMemory, "not enough memory"),
        ("hang", errors.ModelLoadFailed, "no progress with its load for 4 s"),
    ],
)
def test_load_that_fails_gives_its_memory_back(
    tmp_path: Path, fault: str, error: type[errors.BitingLipError], cause: str
) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(error, match=cause):
            await answer(rig, job())
        assert rig.operations.status(ECHO) == "error"
        assert cause in (rig.operations.cause(ECHO) or "")
        assert rig.reserved() == 0
        assert await answer(rig, job(model="beside")) == "a b c"  # the others are untouched
        failed = [view for view in rig.operations.workers() if view.state == "failed"]
        assert [view.id for view in failed] == [f"{ECHO}/0"]

    # Of the model beside, too, whose process a busy machine is slow to start.
    limits = {"workers": {"load_timeout": 4}} if fault == "hang" else {}
    with_settings(tmp_path, test, loading(fault, **limits))


def test_load_that_keeps_failing_is_given_up_and_does_not_spin(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for _ in range(3):  # one more than may fail
            with pytest.raises(errors.ModelLoadFailed, match="not to load"):
                await answer(rig, job())
        assert rig.manager.models[ECHO].given_up
        with pytest.raises(errors.ModelLoadFailed, match="out of service"):
            await answer(rig, job())  # refused, not tried: that would say why it fails
        with pytest.raises(errors.ModelLoadFailed):
            await rig.operations.load(ECHO)  # an operator may try again
        assert rig.reserved() == 0

    with_settings(tmp_path, test, loading("error", workers={"max_restarts": 2}))


def test_retry_of_a_load_that_ran_out_of_memory_follows_an_eviction(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("beside")
        with pytest.raises(errors.OutOfMemory):
            await answer(rig, job())
        await until(lambda: rig.operations.status("beside") == "available")
        assert rig.reserved() == 0

    with_settings(tmp_path, test, loading("oom"))


# ---- a worker that fails while it works, seen over HTTP ----------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a model that obeys faults, another that does not, on a made-up card."""
    sets = [
        "devices.fake=[{name: card, memory_bytes: 24000000000}]",
        "models.demo-echo.fake={faults: true, memory_bytes: 10000000000, tokens_per_second: 50}",
        "models.other={engine: fake, fake: {memory_bytes: 10000000000, tokens_per_second: 50}}",
        "models.late={engine: fake, fake: {load_seconds: 2}}",
        "workers={heartbeat_timeout: 4, max_restarts: 100, restart_window: 5}",
    ]
    home = tmp_path_factory.mktemp("faulty") / "home"
    with running_server(home, *(word for value in sets for word in ("--set", value))) as server:
        yield server
        eventually(server.idle)
        with server.client() as client:
            for name in (ECHO, "other", "late"):
                client.post(f"/api/v1/models/{name}/unload").raise_for_status()
        assert server.status()["reservations"] == []
        assert all(each["reserved_bytes"] == 0 for each in server.status()["devices"])


def body(prompt: str, max_tokens: int = 5, **fields: Any) -> dict[str, Any]:
    return {"model": ECHO, "prompt": prompt, "max_tokens": max_tokens} | fields


def test_worker_crash_ends_a_stream_in_an_error(faulty: Server) -> None:
    with faulty.client() as client, faulty.client() as beside:
        asked = {"model": "other", "prompt": "x", "max_tokens": 100, "stream": True}
        with (
            beside.stream("POST", GENERATE, json=asked) as other,
            client.stream("POST", GENERATE, json=body("y", 500, stream=True)) as answer,
        ):
            events = iter_events(answer.iter_lines())
            next(event for event in events if event[0] == "token")
            os.kill(faulty.worker(ECHO)["pid"], signal.SIGKILL)
            with AwakeClock() as clock:
                rest = list(events)
                assert clock() < SOON
            assert [name for name, _ in rest if name != "token"] == ["failed"]
            assert rest[-1][1]["error"]["code"] == "WORKER_CRASHED"
            assert list(iter_events(other.iter_lines()))[-1][0] == "completed"


def test_heartbeat_that_stops_has_the_worker_replaced_and_its_request_answered(
    faulty: Server,
) -> None:
    with faulty.client() as client:
        client.post(GENERATE, json=body("warm")).raise_for_status()
        pid = faulty.worker(ECHO)["pid"]
        os.kill(pid, signal.SIGSTOP)
        answer = client.post(GENERATE, json=body("patience"))
        assert answer.status_code == 200
        assert faulty.worker(ECHO)["pid"] != pid


@pytest.mark.parametrize("prompt", ["!crash over http", "!garbage over http", "!hang over http"])
def test_quarantine_finds_a_poison_request_and_remembers_it(faulty: Server, prompt: str) -> None:
    with faulty.client() as client:
        first = client.post(GENERATE, json=body(prompt))
        assert (first.status_code, first.json()["error"]["code"]) == (502, "WORKER_CRASHED")
        assert first.json()["error"]["details"] == {"quarantined": True}
        eventually(lambda: client.post(GENERATE, json=body("well?")).status_code == 200)
        pid = faulty.worker(ECHO)["pid"]
        again = client.post(GENERATE, json=body(prompt))
        assert again.json()["error"]["details"] == {"quarantined": True}
        assert faulty.worker(ECHO)["pid"] == pid


def test_out_of_memory_fails_one_request_only(faulty: Server) -> None:
    with faulty.client() as client:
        client.post(GENERATE, json=body("warm")).raise_for_status()
        pid = faulty.worker(ECHO)["pid"]
        answer = client.post(GENERATE, json=body("!oom"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "OUT_OF_MEMORY")
        assert faulty.worker(ECHO)["pid"] == pid
        client.post(GENERATE, json=body("and on")).raise_for_status()


def test_answers_larger_than_a_frame_arrive_together(faulty: Server) -> None:
    """Both wait for the load, so both end in one step."""

    async def ask() -> list[int]:
        async with faulty.async_client() as client:
            asked = [body(letter * 9_000_000, 1, model="late") for letter in "xy"]
            answers = await asyncio.gather(*(client.post(GENERATE, json=each) for each in asked))
            return [len(answer.json()["result"]["text"]) for answer in answers]

    assert asyncio.run(ask()) == [9_000_000] * 2
    assert faulty.worker("late")["restarts"] == 0


def test_retry_after_many_kills_under_load_answers_all_that_had_not_streamed(
    faulty: Server,
) -> None:
    async def storm() -> list[int]:
        async with faulty.async_client() as client:
            asked = [client.post(GENERATE, json=body(f"n{n}", 10)) for n in range(60)]
            tasks = [asyncio.create_task(each) for each in asked]
            await asyncio.sleep(0.1)
            os.kill(faulty.worker(ECHO)["pid"], signal.SIGKILL)
            return [answer.status_code for answer in await asyncio.gather(*tasks)]

    before = len([each for each in descendants(faulty.process.pid) if alive(each)])
    assert asyncio.run(storm()) == [200] * 60
    eventually(
        lambda: len([each for each in descendants(faulty.process.pid) if alive(each)]) <= before + 1
    )
