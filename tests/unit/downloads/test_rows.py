"""Downloads in the database: ended ones go with time, or where they hold too much."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitinglip.db.database import Database
from bitinglip.downloads import rows as module
from bitinglip.downloads.download import Download, File, Requester, Wanted, new_download
from bitinglip.downloads.rows import DownloadRows


def using(tmp_path: Path, act: Callable[[DownloadRows], Awaitable[None]]) -> None:
    async def run() -> None:
        db = await Database.open(tmp_path / "bitinglip.db")
        try:
            async with asyncio.timeout(60):
                await act(DownloadRows(db, retention=60))
        finally:
            await db.close()

    asyncio.run(run())


def made(number: int, model: str = "m", *, ended: timedelta | None = None) -> Download:
    """Make a download. ``ended``: how long ago it failed; None while it runs."""
    download = new_download(Wanted(repo="org/m", name=model), Requester("k"), "normal")
    download.id = f"dl_{number:03}"
    download.files = {"a": File(2, 1)}
    if ended is not None:
        download.end("failed", None, datetime.now(UTC) - ended)
    return download


def test_download_is_read_as_it_was_saved(tmp_path: Path) -> None:
    async def act(rows: DownloadRows) -> None:
        first, other = made(1), made(2, "n")
        for each in (first, other):
            await rows.save(each)
        assert await rows.open() == [first, other]
        first.end("cancelled", None, datetime.now(UTC))
        await rows.save(first)
        assert await rows.open() == [other]
        assert (await rows.find(first.id), await rows.find("dl_x")) == (first, None)
        await rows.save(made(3))
        last = await rows.last("m")
        assert last is not None
        assert last.id == "dl_003"
        assert sorted(await rows.models()) == ["m", "n"]
        page, total = await rows.page(["m"], limit=1, offset=1)
        assert ([each.id for each in page], total) == (["dl_001"], 2)
        assert (await rows.page(None, limit=5, offset=0))[1] == 3
        assert not await rows.is_elsewhere(other.id)
        await rows.remove(first.id)
        assert await rows.find(first.id) is None

    using(tmp_path, act)


def test_download_that_has_ended_is_forgotten_after_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(rows: DownloadRows) -> None:
        await rows.save(made(1))
        await rows.save(made(2, ended=timedelta(seconds=90)))
        await rows.save(made(3, ended=timedelta(seconds=5)))
        await rows.clean()
        assert [each.id for each in (await rows.page(None, limit=9, offset=0))[0]] == [
            "dl_003",
            "dl_001",
        ]
        monkeypatch.setattr(module, "MOST_BYTES", 1)
        await rows.clean()
        assert [each.id for each in (await rows.page(None, limit=9, offset=0))[0]] == ["dl_001"]

    using(tmp_path, act)
