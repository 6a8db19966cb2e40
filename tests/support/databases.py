"""Has tests run over PostgreSQL that know of files of SQLite only: each file gets a database."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from bitinglip.db.database import Database
from bitinglip.db.postgres import address, migrate
from bitinglip.settings.database import Database as DatabaseSettings
from bitinglip.telemetry.health import Health
from tests.support import server as servers
from tests.support import services
from tests.support.postgres import PostgresServer, running_pgbouncer

_TEMPLATE = "migrated"


class Databases:
    """Makes a database for each path, from one that is migrated already."""

    def __init__(self, server: PostgresServer, through: Callable[[str], str]) -> None:
        """``through`` makes an address lead through a pooler, or returns it as it is."""
        self._server = server
        self._through = through
        self._urls: dict[Path, str] = {}
        self._made = False

    def url(self, path: Path) -> str:
        """Return the address of the database that stands for a file of SQLite."""
        if path not in self._urls:
            if not self._made:
                self._server.run(f"DROP DATABASE IF EXISTS {_TEMPLATE}")
                self._server.run(f"CREATE DATABASE {_TEMPLATE}")
                migrate(address(self._server.url(_TEMPLATE)))
                self._made = True
            self._urls[path] = self._through(self._server.make(_TEMPLATE))
        return self._urls[path]

    def known(self) -> set[Path]:
        """Return the paths that have a database."""
        return set(self._urls)

    def forget(self, kept: set[Path]) -> None:
        """Drop what the last test has made, but for these, which fixtures of several tests use."""
        for path in set(self._urls) - kept:
            name = make_url(self._urls.pop(path)).database
            self._server.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def pgbouncer(config: pytest.Config) -> str:
    """Return the program of the pooler; fail, or skip, where it is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        services.missing(config, "PgBouncer", "pgbouncer")
    return program


@contextmanager
def opened(server: PostgresServer, kind: str, config: pytest.Config) -> Iterator[Databases]:
    """Yield what makes databases, directly or through PgBouncer."""
    if kind == "postgresql":
        yield Databases(server, lambda url: url)
        return
    with running_pgbouncer(pgbouncer(config), server) as through:
        yield Databases(server, through)


def redirect(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every database of a file, also of servers that tests start, be one of PostgreSQL."""
    plain = Database.open

    async def open_other(
        path: Path, health: Health | None = None, settings: DatabaseSettings | None = None
    ) -> Database:
        if settings is None or settings.url is None:
            settings = DatabaseSettings(url=databases.url(path), pool_size=2)
        return await plain(path, health, settings)

    monkeypatch.setattr(Database, "open", open_other)
    monkeypatch.setattr(servers, "database_of", databases.url)
