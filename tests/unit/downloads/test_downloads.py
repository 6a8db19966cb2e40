"""Downloads that wait, end and are asked for again, with a real database and no hub."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bitinglip.audit.log import AuditLog
from bitinglip.db.database import Database
from bitinglip.downloads.download import Requester, Wanted, new_download
from bitinglip.downloads.downloads import Downloads
from bitinglip.downloads.hub import HubAccess
from bitinglip.downloads.rows import DownloadRows
from bitinglip.errors import Conflict
from bitinglip.settings import Settings
from bitinglip.telemetry.download_metrics import DownloadMetrics
from model_store.store import ModelStore
from tests.support.model_folders import llama
from tests.support.wait import until

WANTED = Wanted(repo="org/model", name="model")
REQUESTER = Requester("k")


class Rig:
    """Opens downloads as the server does, again after each stop."""

    def __init__(self, folder: Path, db: Database) -> None:
        self.db = db
        self.rows = DownloadRows(db, retention=60)
        self._store = ModelStore(folder / "models")

    async def open(self, **hub: object) -> Downloads:
        settings = Settings.model_validate({"hub": hub})
        return await Downloads.open(
            self.db,
            self._store,
            HubAccess(settings, self._store.root, None),
            settings,
            AuditLog(self.db, b"k" * 32),
            DownloadMetrics(CollectorRegistry()),
            lambda _: None,
            lambda _: "",
        )


def using(tmp_path: Path, act: Callable[[Rig], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                await act(Rig(tmp_path, db))
        finally:
            await db.close()

    asyncio.run(run())


async def ended(downloads: Downloads, download_id: str) -> tuple[str, str]:
    """Wait for the end of a download; return its state and the message of its error."""
    last = [each async for each in downloads.watch(download_id)][-1]
    return last.state, last.error.message if last.error else ""


def test_download_that_waited_asks_no_hub_once_the_settings_keep_the_server_off_it(
    tmp_path: Path,
) -> None:
    async def act(rig: Rig) -> None:
        before = await rig.open()
        asked = await before.ask(WANTED, REQUESTER, "normal")
        await before.close()
        downloads = await rig.open(offline=True)
        downloads.resume()
        state, message = await ended(downloads, asked.id)
        assert state == "failed"
        assert "hub.offline" in message
        await downloads.close()

    using(tmp_path, act)


def test_download_that_is_asked_for_while_it_ends_is_left_in_no_row_that_nothing_runs(
    tmp_path: Path,
) -> None:
    """The database is busy, so the end and the question wait for it at the same time."""

    async def act(rig: Rig) -> None:
        before = await rig.open()
        asked = await before.ask(WANTED, REQUESTER, "low")
        await before.close()
        # It fails as soon as it runs.
        downloads = await rig.open(token_file=str(tmp_path / "none"))
        async with rig.db.write():
            downloads.resume()
            await asyncio.sleep(0.3)  # by then its end waits
            again = asyncio.create_task(downloads.ask(WANTED, REQUESTER, "high"))
            await asyncio.sleep(0.3)
        await again
        for each in list(downloads.unfinished()):
            await ended(downloads, each.id)
        kept = await rig.rows.find(asked.id)
        assert kept is not None
        assert kept.ended
        await downloads.close()

    using(tmp_path, act)


def test_download_that_is_asked_for_while_it_is_taken_off_the_list_keeps_a_row(
    tmp_path: Path,
) -> None:
    async def act(rig: Rig) -> None:
        downloads = await rig.open()
        asked = await downloads.ask(WANTED, REQUESTER, "low")
        await downloads.cancel(asked.id)
        again = asyncio.create_task(downloads.ask(WANTED, REQUESTER, "low"))
        await asyncio.sleep(0)  # it holds the decision, and looks into the database
        forgotten = asyncio.create_task(downloads.forget(asked.id))
        assert (await again).id == asked.id
        with pytest.raises(Conflict):
            await forgotten
        assert await rig.rows.find(asked.id) is not None
        await downloads.close()

    using(tmp_path, act)


def test_download_is_not_ended_by_a_restart_without_a_network_until_its_time_is_up(
    tmp_path: Path,
) -> None:
    """Nothing listens at the hub's address."""

    async def act(rig: Rig) -> None:
        for last in (False, True):
            downloads = await rig.open(endpoint="http://127.0.0.1:9", retry_for=3600)
            asked = await downloads.ask(WANTED, REQUESTER, "normal")
            downloads.resume()
            await until(partial(getattr, asked, "hub_problem"))
            assert asked.state == "queued"
            if not last:
                await downloads.close()
        (open_one,) = downloads.unfinished()
        assert open_one.failing_since is not None
        open_one.failing_since -= 7200
        await downloads.ask(WANTED, REQUESTER, "normal")  # which asks the hub at once
        state, message = await ended(downloads, open_one.id)
        assert (state, "cannot be reached" in message) == ("failed", True)
        await downloads.close()

    using(tmp_path, act)


def test_download_of_another_key_runs_beside_one_that_may_run_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process only waits until it is ended."""
    monkeypatch.setattr("bitinglip.downloads.process._PROGRAM", "import sys; sys.stdin.read()")

    async def act(rig: Rig) -> None:
        downloads = await rig.open(max_downloads=3, max_downloads_per_key=1)
        for key, name in (("k", "one"), ("k", "two"), ("j", "three")):
            wanted = Wanted(repo="org/model", name=name)
            await downloads.ask(wanted, Requester(key), "normal")
        downloads.resume()
        states = {each.wanted.name: each.state for each in downloads.unfinished()}
        assert states == {"one": "running", "two": "queued", "three": "running"}
        await downloads.close()

    using(tmp_path, act)


_BRINGS = """
import json, os, shutil, sys
from pathlib import Path
sys.path[:] = {path!r}
from model_store.store import ModelStore
order = json.loads(sys.stdin.buffer.readline())
store = ModelStore(Path(order["root"]))
with store.draft() as folder:
    shutil.copytree(store.root.parent / "origin", folder / "files", dirs_exist_ok=True)
    store.finish(folder, order["name"], source="hub:" + order["repo"], revision="5" * 40)
os._exit(9)
"""


def test_download_is_completed_whose_process_is_ended_after_it_has_brought_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End the process before it reports the model, and end a server at that moment."""
    llama(tmp_path / "origin")
    monkeypatch.setattr("bitinglip.downloads.process._PROGRAM", _BRINGS)

    async def act(rig: Rig) -> None:
        downloads = await rig.open()
        asked = await downloads.ask(WANTED, REQUESTER, "normal")
        downloads.resume()
        assert await ended(downloads, asked.id) == ("completed", "")
        assert (asked.kind, asked.commit) == ("text", "5" * 40)
        await downloads.close()
        asked.queue(REQUESTER, "normal")
        await rig.rows.save(asked)
        downloads = await rig.open(offline=True)
        downloads.resume()
        assert await ended(downloads, asked.id) == ("completed", "")
        await downloads.close()

    using(tmp_path, act)


def test_download_that_ran_before_a_stop_waits_after_it(tmp_path: Path) -> None:
    async def act(rig: Rig) -> None:
        download = new_download(WANTED, REQUESTER, "normal")
        download.start()
        download.waits = True
        await rig.rows.save(download)
        downloads = await rig.open()
        assert downloads.states() == {"queued": 1, "running": 0}
        (open_one,) = downloads.unfinished()
        assert (open_one.started_at, open_one.waits) == (None, False)
        await downloads.close()

    using(tmp_path, act)
