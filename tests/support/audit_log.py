"""Opens the audit log of a file as a server does, and reads it as another program does."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitinglip.audit.chain import SEALING, verify
from bitinglip.audit.log import AuditLog
from bitinglip.audit.query import Filter
from bitinglip.db.database import Database
from bitinglip.home import Home
from tests.support import other_program

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
    """Return the rows that the database holds now, read as another program reads it."""
    found = other_program.rows(home.database, "SELECT * FROM audit_log ORDER BY seq")
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


def verdict(home: Home) -> tuple[bool, int, int | None]:
    """Return whether a home's log is whole, how many rows it has, and the first bad one."""
    with other_program.selecting(home.database) as select:
        return verify(select, home.secret(SEALING))[:3]
