"""Opens the audit log of a database file, as a server does."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitinglip.audit.log import AuditLog
from bitinglip.audit.query import Filter
from bitinglip.db.database import Database

KEY = b"k" * 32
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@contextmanager
def using(path: Path, **options: Any) -> Iterator[tuple[Run, AuditLog]]:
    """One life of a server: its log, and what runs a coroutine in its loop."""
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
