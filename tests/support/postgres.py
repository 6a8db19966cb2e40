"""A PostgreSQL server of the tests' own, from the system's package."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

from tests.support.wait import eventually

#: and connections enough for all servers of a session, each with a database of its own
_FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=400")


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest version's; None without any."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).parent


@dataclass
class PostgresServer:
    """Runs a server that listens on a socket in ``folder`` only."""

    bin: Path
    folder: Path
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def make(self, template: str = "template1") -> str:
        """Make a database, empty or as another one is, and return its URL."""
        name = f"test{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def run(self, sql: str, database: str = "postgres") -> None:
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            connection.execute(sql.encode())

    def dsn(self, database: str) -> str:
        return f"host={self.folder} user=postgres dbname={database}"

    def control(self, *words: str) -> None:
        command = [str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), "-s", "-w", *words]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, user=_USER)

    def start(self) -> None:
        options = " ".join(f"-c {each}" for each in _FAST)
        sockets = f"-k {self.folder} -c listen_addresses= {options}"
        self.control("-l", str(self.folder / "log"), "-o", sockets, "start")

    def stop(self, how: str = "immediate") -> None:
        self.control("-m", how, "stop")


# It refuses to run as root; the package has made a user for it.
_USER = "postgres" if os.geteuid() == 0 else None


@contextmanager
def running_postgres(bin: Path) -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if _USER is not None:
            shutil.chown(folder, _USER)
        command = [str(bin / "initdb"), "-D", str(folder / "data"), "-U", "postgres"]
        options = ["-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(
            [*command, *options],
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            user=_USER,
        )
        server = PostgresServer(bin, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def running_pgbouncer(program: str, server: PostgresServer) -> Iterator[Callable[[str], str]]:
    """Start a pooler of transactions; yields what makes a database's URL lead through it."""
    with tempfile.TemporaryDirectory(prefix="pgb") as name:
        folder = Path(name)
        users, config = folder / "users", folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        config.write_text(
            f"[databases]\n* = host={server.folder}\n[pgbouncer]\nunix_socket_dir = {folder}\n"
            "listen_addr =\npool_mode = transaction\nauth_type = trust\ndefault_pool_size = 4\n"
            # Idle connections to the databases of tests before are not kept.
            "server_idle_timeout = 5\nmax_client_conn = 1000\n"
            f"auth_file = {users}\nlogfile = {folder / 'log'}\n"
        )
        if _USER is not None:
            for path in (folder, users, config):
                shutil.chown(path, _USER)
        with subprocess.Popen(
            [program, str(config)], user=_USER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                eventually((folder / ".s.PGSQL.6432").exists)
                yield lambda url: url.replace(str(server.folder), f"{folder}&port=6432")
            finally:
                process.kill()
