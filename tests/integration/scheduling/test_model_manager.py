"""Placement and eviction, over real worker processes on made-up devices."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitinglip import errors
from bitinglip.scheduling.event_log import Queued
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.queue.priority import Priority
from model_store.page_cache import PageCache
from model_store.store import ModelStore
from tests.support.scheduling_rig import (
    ECHO,
    Rig,
    answer,
    events_of,
    idle,
    job,
    with_settings,
)
from tests.support.wait import until
from workers.devices import DeviceUsage

GB = 1_000_000_000


def settings(models: dict[str, dict[str, Any]], card: int = 24, **values: Any) -> dict[str, Any]:
    """Return settings of fake models with so many GB each on one card."""
    shaped = {}
    for name, own in models.items():
        fake = {"memory_bytes": own.pop("gb", 1) * GB, **own.pop("fake", {})}
        shaped[name] = {"engine": "fake", "fake": fake, **own}
    devices = {"fake": [{"name": "card", "memory_bytes": card * GB}]}
    return {"models": shaped, "devices": devices, **values}


def test_eviction_lets_three_models_share_memory_for_two(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, rig.reserved())
                await asyncio.sleep(0.005)

        watcher = asyncio.create_task(watch())
        jobs = [job(f"n{n}", model="abc"[n % 3]) for n in range(30)]
        answers = await asyncio.gather(*(answer(rig, each) for each in jobs))
        watcher.cancel()
        assert answers == [f"n{n} n{n} n{n}" for n in range(30)]
        assert 20 * GB <= most <= 24 * GB
        for name in "abc":
            await rig.operations.unload(name)
        assert rig.reserved() == 0
        assert rig.operations.reservations() == []

    values = settings({name: {"gb": 10, "fake": {"load_seconds": 0.1}} for name in "abc"})
    with_settings(tmp_path, test, values)


def test_memory_limit_of_a_card_lets_models_take_no_more(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await answer(rig, job(model="a")) == "a b c"
        assert await answer(rig, job(model="b")) == "a b c"
        assert [each.model for each in rig.operations.reservations()] == ["b"]
        (shown,) = rig.operations.devices()
        assert (shown.memory_bytes, shown.reserved_bytes) == (12 * GB, 10 * GB)
        assert "devices.memory_limit" in (shown.note or "")
        with pytest.raises(errors.ModelDoesNotFit):
            await rig.operations.load("large")

    values = settings({"a": {"gb": 10}, "b": {"gb": 10}, "large": {"gb": 13}})
    values["devices"]["memory_limit"] = {"all": 12 * GB}
    with_settings(tmp_path, test, values)


def test_eviction_spares_a_pinned_model(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load("pinned")
        with pytest.raises(errors.ModelDoesNotFit):
            await answer(rig, job(model="large"))
        assert rig.operations.status("pinned") == "ready"
        assert await answer(rig, job(model="small")) == "a b c"

    models = {"pinned": {"gb": 10, "pin": True}, "large": {"gb": 20}, "small": {"gb": 5}}
    with_settings(tmp_path, test, settings(models))


def test_load_of_a_model_that_can_never_fit_is_refused_at_once(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(errors.ModelDoesNotFit) as refused:
            await answer(rig, job(model="huge"))
        assert refused.value.param == "model"
        with pytest.raises(errors.ModelDoesNotFit):
            await rig.operations.load("huge")
        assert rig.operations.workers() == []

    with_settings(tmp_path, test, settings({"huge": {"gb": 25}}))


def test_placement_splits_a_model_too_large_for_one_card_over_two(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await answer(rig, job(model="wide")) == "a b c"
        (worker,) = rig.operations.workers()
        assert worker.devices == ["fake0", "fake1"]
        assert rig.reserved() == 30 * GB

    values = settings({"wide": {"gb": 30}})
    values["devices"]["fake"] *= 2
    with_settings(tmp_path, test, values)


def test_unload_of_an_unused_model_follows_its_keep_alive(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await answer(rig, job(model="brief")) == "a b c"
        assert await answer(rig, job(model="kept")) == "a b c"
        await until(lambda: rig.reserved() == GB)
        assert rig.operations.status("brief") == "available"
        assert rig.operations.status("kept") == "ready"

    models = {"brief": {"keep_alive": "0.3s"}, "kept": {"keep_alive": "forever"}}
    with_settings(tmp_path, test, settings(models))


def test_eviction_lets_models_in_use_take_turns(tmp_path: Path) -> None:
    """Both clients never stop; neither is starved, and neither reloads for each request."""

    async def client(rig: Rig, model: str) -> int:
        served = 0
        ends = asyncio.get_running_loop().time() + 5
        while asyncio.get_running_loop().time() < ends:
            await answer(rig, job(model=model, max_tokens=2))
            served += 1
        return served

    async def test(rig: Rig) -> None:
        served = await asyncio.gather(client(rig, "a"), client(rig, "b"))
        loads = sum(rig.manager.models[name].loads for name in "ab")
        assert min(served) > 10
        assert 3 <= loads <= 14
        await idle(rig)

    fake = {"load_seconds": 0.1, "tokens_per_second": 100}
    values = settings({name: {"gb": 20, "fake": fake} for name in "ab"})
    values["residency"] = {"min_seconds": 1, "patience": 0.2}
    with_settings(tmp_path, test, values)


def test_replicas_share_work_and_replace_each_other(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        await until(lambda: len(rig.manager.serving(ECHO)) == 2)
        tasks = [asyncio.create_task(answer(rig, job(f"n{n}", 20))) for n in range(16)]
        await until(lambda: rig.dispatcher.running(ECHO) == 16)
        assert {each.in_flight for each in rig.manager.serving(ECHO)} == {8}
        rig.kill(f"{ECHO}/1")
        assert await asyncio.gather(*tasks) == [" ".join([f"n{n}"] * 20) for n in range(16)]
        await until(lambda: len(rig.manager.serving(ECHO)) == 2)

    fake = {"tokens_per_second": 40}
    with_settings(tmp_path, test, settings({ECHO: {"replicas": 2, "fake": fake}}))


def test_drain_of_a_worker_lets_it_end_what_it_runs(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        running = asyncio.create_task(answer(rig, job(max_tokens=30)))  # for a second
        await until(lambda: rig.dispatcher.running(ECHO))
        rig.operations.drain_worker(f"{ECHO}/0")
        assert rig.operations.workers()[0].state == "draining"
        assert (await running).split() == ["a", "b", "c"] * 10
        await until(lambda: rig.operations.workers() == [])
        assert rig.operations.status(ECHO) == "available"

    with_settings(tmp_path, test, settings({ECHO: {"fake": {"tokens_per_second": 30}}}))


def test_fairness_a_light_key_waits_for_one_batch_at_most_behind_a_heavy_one(
    tmp_path: Path,
) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        order: list[str] = []

        async def one(key: str) -> None:
            await answer(rig, job(key_id=key, max_tokens=2))
            order.append(key)

        heavy = [asyncio.create_task(one("heavy")) for _ in range(40)]
        await until(lambda: rig.dispatcher.running(ECHO) == 4)
        before = len(order)
        await one("light")
        assert len(order) - before <= 3 * 4  # what ran, its own batch, what ends beside it
        await asyncio.gather(*heavy)

    fake = {"batch_size": 4, "tokens_per_second": 20}
    with_settings(tmp_path, test, settings({ECHO: {"fake": fake}}))


def test_priority_of_a_higher_level_goes_first(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        order: list[str] = []

        async def one(name: str, level: int) -> None:
            await answer(rig, job(key_id=name, priority=Priority(level=level)))
            order.append(name)

        first = asyncio.create_task(one("first", 0))
        await until(lambda: rig.dispatcher.running(ECHO) == 1)
        await asyncio.gather(first, one("low", -1), one("normal", 0), one("high", 2))
        assert order == ["first", "high", "normal", "low"]

    fake = {"batch_size": 1, "tokens_per_second": 30}
    with_settings(tmp_path, test, settings({ECHO: {"fake": fake}}))


def test_unload_answers_and_accounts_for_a_request_that_comes_during_it(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await answer(rig, job()) == "a b c"
        unloading = asyncio.create_task(rig.operations.unload(ECHO))
        await asyncio.sleep(0)
        assert await answer(rig, job()) == "a b c"
        await unloading
        assert rig.operations.in_use(ECHO)
        assert rig.reserved() == GB  # the new worker is in the books
        rig.kill(rig.manager.serving(ECHO)[0].id)
        assert await answer(rig, job()) == "a b c"

    with_settings(tmp_path, test, settings({ECHO: {}}))


def test_retry_of_requests_that_lost_their_replica_goes_to_an_idle_one(tmp_path: Path) -> None:
    """The lost one cannot come back: its memory is taken meanwhile."""

    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        await until(lambda: len(rig.manager.serving(ECHO)) == 2)
        task = asyncio.create_task(answer(rig, job(max_tokens=5)))
        await until(lambda: rig.dispatcher.running(ECHO))
        (busy,) = [each for each in rig.manager.serving(ECHO) if each.in_flight]
        rig.manager.facts.update({"fake0": DeviceUsage(14 * GB, {})}, [], {})
        rig.kill(busy.id)
        assert (await asyncio.wait_for(task, 60)).split() == ["a", "b", "c", "a", "b"]
        assert len(rig.manager.serving(ECHO)) == 1

    fake = {"tokens_per_second": 10}
    values = settings({ECHO: {"replicas": 2, "gb": 10, "fake": fake}})
    with_settings(tmp_path, test, values, facts=False)


def test_restart_of_a_loading_worker_is_refused(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        waiting = asyncio.create_task(answer(rig, job()))
        await until(rig.operations.workers)
        with pytest.raises(errors.Conflict):
            await rig.operations.restart_worker(f"{ECHO}/0")
        assert await waiting == "a b c"

    with_settings(
        tmp_path, test, settings({ECHO: {"fake": {"load_seconds": 0.3}, "keep_alive": 0}})
    )


def test_load_is_refused_after_a_file_changed_until_it_was_verified(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        store = ModelStore(tmp_path / "models")
        (entry,) = store.get("a").files
        (store.path("a") / entry.path).touch()
        with pytest.raises(errors.ModelLoadFailed, match=f"{entry.path} changed.*models verify a"):
            await answer(rig, job(model="a"))
        assert rig.operations.status("a") == "error"
        assert rig.reserved() == 0
        assert store.verify("a") == []
        await rig.operations.load("a")
        assert await answer(rig, job(model="a")) == "a b c"

    with_settings(tmp_path, test, settings({"a": {}}))


def test_load_eta_is_as_long_as_the_last_load_took(tmp_path: Path) -> None:
    """Check the ETA of the first request after idling, too, before its load has begun."""

    async def test(rig: Rig) -> None:
        with rig.dispatcher.open(job()) as first:
            events = await events_of(first)
        assert next(event.eta for event in events if isinstance(event, Queued)) is None
        await until(lambda: not rig.manager.models[ECHO].replicas)
        seconds = rig.manager.models[ECHO].load_seconds
        with rig.dispatcher.open(job()) as again:
            events = await events_of(again)
        first_eta = next(event.eta for event in events if isinstance(event, Queued))
        assert first_eta == pytest.approx(seconds, abs=0.01)

    with_settings(
        tmp_path, test, settings({ECHO: {"fake": {"load_seconds": 0.3}, "keep_alive": 0}})
    )


def test_load_from_slow_storage_reads_the_files_in_sequence_first(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        weights = tmp_path / "models" / ECHO / "files" / "a.safetensors"
        weights.write_bytes(bytes(1000))
        for reads_first, held in ((True, {ECHO: 1000}), (False, {})):
            cache = PageCache(10_000, reads_first=reads_first)
            rig.manager._loader._page_cache = cache
            load = asyncio.create_task(rig.operations.load(ECHO))
            await until(lambda: any(each.model == ECHO for each in rig.operations.workers()))
            assert cache.held == held
            await load
            assert cache.held == {}
            await rig.operations.unload(ECHO)

    with_settings(tmp_path, test, settings({ECHO: {"fake": {"load_seconds": 0.3}}}))


def test_model_that_was_replaced_while_unloaded_is_the_new_one(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await rig.operations.load(ECHO)
        before = rig.manager.model_state(ECHO).manifest
        store = rig.store.replacing(ECHO)

        def replace(description: str) -> None:
            with store.draft() as folder:
                config = (rig.store.path(ECHO) / "config.json").read_bytes()
                (folder / "files/config.json").write_bytes(config)
                store.finish(folder, ECHO, source="demo", description=description)

        await asyncio.to_thread(replace, "newer")
        assert rig.manager.model_state(ECHO).manifest == before  # what its workers have loaded
        rig.manager.model_state(ECHO).replicas.clear()
        assert rig.manager.model_state(ECHO).manifest.description == "newer"

    with_settings(tmp_path, test, settings({ECHO: {}}))


def test_unload_keeps_a_load_that_was_asked_for_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans are some time apart: the load's comes when the unload has answered."""

    async def test(rig: Rig) -> None:
        loading: list[asyncio.Task[None]] = []
        remove = ModelState.remove

        def remove_and_ask(model_state: ModelState, replica: Replica) -> None:
            remove(model_state, replica)
            if not loading:
                rig.manager._plan_timer._last = rig.manager.clock()
                loading.append(asyncio.create_task(rig.operations.load(ECHO)))

        await rig.operations.load(ECHO)
        monkeypatch.setattr(ModelState, "remove", remove_and_ask)
        await rig.operations.unload(ECHO)
        await asyncio.wait_for(loading[0], 20)
        assert rig.manager.serving(ECHO)

    with_settings(tmp_path, test, settings({ECHO: {}}))
