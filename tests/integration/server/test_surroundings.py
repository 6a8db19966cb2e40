"""The machine around the server fails: descriptors, disk, database, /proc, streams. It goes on."""

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bitinglip.db.files import prepare
from tests.support.http_client import NATIVE
from tests.support.server import Server, await_ready, running_server, start_server
from tests.support.wait import eventually

TRANSCRIBE = "/v1/audio/transcriptions"
FAKE = ("--set", "demo=never", "--set", "models.demo-echo.engine=fake")
BODY: dict[str, Any] = {"model": "demo-echo", "prompt": "a", "max_tokens": 2}
FEW_DESCRIPTORS = 'ulimit -n 256; exec "$@"'
#: a mount namespace of its own, where /proc is an empty folder
NO_PROC = 'exec unshare -m sh -c \'mount -t tmpfs none /proc && exec "$@"\' sh "$@"'


class Manager:
    """Listens on a service manager's socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0)
        self.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
        self._heard: list[str] = []

    def close(self) -> None:
        self._socket.close()

    def heard(self, line: str) -> int:
        """Count the messages with this line so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard += self._socket.recv(4096).decode().split("\n")
        return self._heard.count(line)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    with closing(Manager(tmp_path_factory.mktemp("notify") / "socket")) as manager:
        yield manager


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, manager: Manager) -> Iterator[Server]:
    """Provide a server with few descriptors, under a service manager."""
    home = tmp_path_factory.mktemp("surroundings") / "home"
    with running_server(home, *FAKE, environ=manager.environ, shell=FEW_DESCRIPTORS) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def detail(client: httpx.Client, check: str) -> str:
    """Return the detail that /health gives of a degraded part; empty if it is well."""
    health = client.get("/health").json()
    found = health["checks"][check]
    assert set(found) == {"ok", "detail", "latency_ms"}
    if found["ok"]:
        return ""
    assert health["status"] == "degraded"
    return str(found["detail"])


def status_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("error", {}).get("code", "")


def create_key(client: httpx.Client) -> httpx.Response:
    return client.post("/api/v1/keys", json={"name": "k", "scopes": ["models:read"]})


# ---- descriptors and connections ---------------------------------------------------------------


def test_descriptors_are_not_used_up_by_idle_connections(plain: Server) -> None:
    before = plain.process.pid, len(psutil.Process(plain.process.pid).open_files())
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(plain.client())
        for n in range(400):
            connection = socket.create_connection(("127.0.0.1", port(plain)), timeout=60)
            stack.enter_context(connection)
            if n % 80 == 0:
                assert httpx.get(plain.url + "/livez", timeout=60).status_code == 200
        assert client.post(NATIVE, json=BODY).status_code == 200
        assert create_key(client).status_code == 201
        assert 'bitinglip_connections_refused_total{reason="idle"}' in client.get("/metrics").text
        assert detail(client, "cluster_manager") == ""
    assert before[0] == plain.process.pid
    assert plain.process.poll() is None


def test_descriptors_that_are_missing_are_taken_from_idle_connections(plain: Server) -> None:
    pid = plain.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    address = ("127.0.0.1", port(plain))
    try:
        with (
            socket.create_connection(address, timeout=60) as idle,
            socket.create_connection(address, timeout=60) as other,
        ):
            eventually(lambda: connections(pid, address) >= 2)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, limits[1]))
            with socket.create_connection(address, timeout=60) as new:
                new.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert idle.recv(1) == b""  # closed for it
                assert other.recv(1) == b""
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
                assert new.recv(12) == b"HTTP/1.1 200"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    with plain.client() as client:
        assert 'connections_refused_total{reason="descriptors"}' in client.get("/metrics").text
        eventually(lambda: client.get("/health").json()["status"] == "healthy")


def connections(pid: int, address: tuple[str, int]) -> int:
    """Count the connections that a process has accepted at an address."""
    found = psutil.Process(pid).net_connections("tcp")
    return sum(each.laddr == address and each.status == "ESTABLISHED" for each in found)


def test_headers_without_end_take_no_memory(plain: Server) -> None:
    process = psutil.Process(plain.process.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", port(plain)), timeout=60) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(64):
                sock.sendall(b"a" * 1_000_000)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(65536).startswith(b"HTTP/1.1 431")
    assert process.memory_info().rss - before < 16_000_000
    with plain.client() as client:
        assert client.get("/livez").status_code == 200


# ---- the database ------------------------------------------------------------------------------


@pytest.mark.sqlite  # tests/integration/postgres has locks, and servers that go away
def test_database_that_is_locked_degrades_the_server_until_it_is_free(plain: Server) -> None:
    with plain.client() as client, closing(sqlite3.connect(plain.home / "bitinglip.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        client.get("/api/v1/models")  # a use to write down
        created = create_key(client)
        assert status_of(created) == (503, "OVERLOADED")
        assert "locked by another program" in created.json()["error"]["message"]
        assert "retry-after" in created.headers
        asynchronous = client.post(NATIVE, json=BODY, headers={"prefer": "respond-async"})
        assert status_of(asynchronous) == (503, "OVERLOADED")
        # The background work fails too, by itself, and says so.
        eventually(lambda: "times of use" in detail(client, "database"), 30)
        assert "locked" in detail(client, "database")
        assert 'bitinglip_degraded{check="database"} 1.0' in client.get("/metrics").text
        assert client.get("/readyz").status_code == 200
        assert client.post(NATIVE, json=BODY).status_code == 200
        other.rollback()
        eventually(lambda: detail(client, "database") == "", 40)
        assert create_key(client).status_code == 201
    assert plain.process.poll() is None


def dropped_lines(client: httpx.Client) -> float:
    name = "bitinglip_log_lines_dropped_total "
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.sqlite  # the disk of another database is not this server's
def test_disk_that_fails_degrades_the_server_until_it_works(plain: Server) -> None:
    """A limit of the size of files stands for a quota, an I/O error, a read-only remount."""
    limits = resource.prlimit(plain.process.pid, resource.RLIMIT_FSIZE)
    with plain.client() as client:
        resource.prlimit(plain.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            assert status_of(create_key(client)) == (503, "OVERLOADED")
            assert "disk reports an error" in detail(client, "database")
            assert client.post(NATIVE, json=BODY).status_code == 200
            # The log cannot be written either, which costs lines and nothing else.
            eventually(lambda: dropped_lines(client) > 0)
        finally:
            resource.prlimit(plain.process.pid, resource.RLIMIT_FSIZE, limits)
        eventually(lambda: detail(client, "database") == "")
        assert create_key(client).status_code == 201
    assert "log lines were dropped" in plain.log.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Provide a disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.sqlite
def test_disk_that_is_full_degrades_the_server_until_there_is_room(small_disk: Path) -> None:
    with running_server(small_disk / "home", *FAKE) as server, server.client() as client:
        assert client.post(NATIVE, json=BODY).status_code == 200
        filler = small_disk / "filler"
        fill(filler)
        asynchronous = client.post(NATIVE, json=BODY, headers={"prefer": "respond-async"})
        assert status_of(asynchronous) == (507, "DISK_FULL")
        assert status_of(create_key(client)) == (507, "DISK_FULL")
        # A refusal may come before the body is read; then its connection is not used again.
        form: dict[str, Any] = {
            "files": {"file": bytes(500_000)},
            "data": {"model": "demo-echo"},
            "headers": {"connection": "close"},
        }
        assert status_of(client.post(TRANSCRIBE, **form)) == (507, "disk_full")
        assert "uploads: There is not enough disk space" in detail(client, "task_manager")
        assert "disk space" in detail(client, "database")
        eventually(lambda: "times of use" in detail(client, "database"), 30)
        assert client.post(NATIVE, json=BODY).status_code == 200
        filler.unlink()
        eventually(lambda: detail(client, "database") == "", 40)
        assert create_key(client).status_code == 201
        assert status_of(client.post(TRANSCRIBE, **form)) == (400, "invalid_value")
        assert detail(client, "task_manager") == ""
        fill(filler)
        client.get("/api/v1/models")
        assert server.stop() == 0


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "not a database": lambda path: path.write_bytes(b"hello\n" * 1000),
    "a page of zeros": lambda path: overwrite(path, 4096, bytes(8192)),
    "a newer version's": lambda path: query(path, "UPDATE alembic_version SET version_num='9999'"),
}


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def query(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


@pytest.mark.sqlite
@pytest.mark.parametrize("name", DAMAGE)
def test_start_with_a_damaged_database_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    prepare(home / "bitinglip.db")
    DAMAGE[name](home / "bitinglip.db")
    server = start_server(home, FAKE)
    assert server.process.wait(60) == 1
    said = server.log.read_text().strip().splitlines()
    assert len(said) == 1
    assert str(home / "bitinglip.db") in said[0]
    if name in ("not a database", "a page of zeros"):
        assert "restore a backup (see docs/backups.md)" in said[0]


# ---- /proc, streams, signals -------------------------------------------------------------------


def test_proc_that_cannot_be_read_is_logged_and_stops_nothing(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("hiding /proc needs root")
    with (
        running_server(tmp_path / "home", *FAKE, shell=NO_PROC) as server,
        server.client() as client,
    ):
        assert client.post(NATIVE, json=BODY).status_code == 200
        assert "sample devices" in detail(client, "cluster_manager")
        assert server.log.read_text().count('"degraded"') == 1
        assert server.stop() == 0


def test_streams_that_are_closed_do_not_stop_the_server(tmp_path: Path) -> None:
    """Their numbers are not given to the database, and the exit code is the server's own."""
    shell = 'exec "$@" <&- >&- 2>&-'
    with (
        running_server(tmp_path / "home", *FAKE, shell=shell) as server,
        server.client() as client,
    ):
        assert create_key(client).status_code == 201
        standard = [os.readlink(f"/proc/{server.process.pid}/fd/{n}") for n in range(3)]
        assert standard == ["/dev/null"] * 3
        assert server.stop() == 0


def test_log_reader_that_died_does_not_stop_the_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "cli", "serve", "--home", str(home), "--port", "0", *FAKE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.close()
        server = Server(home, process, tmp_path / "none.log")
        server.log.touch()
        try:
            await_ready(server)
            with server.client() as client:
                assert create_key(client).status_code == 201
            assert server.stop() == 0
        finally:
            process.kill()


def test_log_reader_that_is_stuck_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "cli", "serve", "--home", str(home), "--port", "0", *FAKE]
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb", buffering=0) as pipe:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while pipe.write(b"x" * 4096):
                pass
        os.set_blocking(writing, True)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=writing) as process:
            server = Server(home, process, tmp_path / "none.log")
            server.log.touch()
            try:
                await_ready(server)
                assert server.stop() == 0
            finally:
                process.kill()


def test_watchdog_and_state_are_told_to_the_service_manager(
    plain: Server, manager: Manager
) -> None:
    assert manager.heard("READY=1") == 1
    before = manager.heard("WATCHDOG=1")
    eventually(lambda: manager.heard("WATCHDOG=1") > before + 2)
    with plain.client() as client:
        assert client.post(NATIVE, json=BODY).status_code == 200
    workers = psutil.Process(plain.process.pid).children()
    assert workers
    assert not any("NOTIFY_SOCKET" in worker.environ() for worker in workers)
    plain.process.send_signal(signal.SIGHUP)  # what a terminal that closes sends, twice
    plain.process.send_signal(signal.SIGHUP)
    assert plain.process.wait(60) == 0
    assert manager.heard("STOPPING=1") == 1
    assert not (plain.home / "server.json").exists()
