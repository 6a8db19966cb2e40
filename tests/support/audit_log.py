"""Opens the audit log of a file as a server does, and reads it as another program does."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bitinglip.audit.chain import SEALING, verify_file
from bitinglip.audit.log import AuditLog
from bitinglip.audit.query import Filter
from bitinglip.db.database import Database
from bitinglip.home import Home

KEY = b"k" * 32
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@contextmanager
def using(path: Path, **options: Any) -> Iterator[tuple[Run, AuditLog]]:
    """Run one life of a server: yield its log, and a function that runs a coroutine in its loop."""
    with asyncio.Runner() as runner:
        db = runner.run(Database.open(path))
        try:
            yield runner.run, AuditLog(db, KEY, **options)
        finally:
            runner.run(db.close())


def entries(run: Run, audit: AuditLog) -> list[dict[str, Any]]:
    """Return the newest entries."""
    rows: list[dict[str, Any]] = run(audit.list(Filter(), limit=100))[0]
    return rows


def on_disk(home: Home, **wanted: object) -> list[dict[str, Any]]:
    """Return the rows that the file holds now, read as another program reads it."""
    with closing(sqlite3.connect(f"{home.database.as_uri()}?mode=ro", uri=True)) as file:
        file.row_factory = sqlite3.Row
        rows = [dict(row) for row in file.execute("SELECT * FROM audit_log ORDER BY seq")]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def verdict(home: Home) -> tuple[bool, int, int | None]:
    """Return whether a home's log is whole, how many rows it has, and the first bad one."""
    return verify_file(home.database, home.secret(SEALING))[:3]
