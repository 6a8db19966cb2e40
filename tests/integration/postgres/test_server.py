"""A server whose home is in PostgreSQL, and the commands beside it."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bitinglip.db.tables import Table
from bitinglip.home import Home
from bitinglip.settings import Settings
from cli.checks.gateways import gateways
from tests.support.cli_process import run
from tests.support.databases import pgbouncer
from tests.support.postgres import PostgresServer, running_pgbouncer
from tests.support.server import running_server, start_server
from tests.support.wait import eventually

NATIVE = "/api/v1/inference/text-generation"
ECHO = {"model": "demo-echo", "prompt": "some words", "max_tokens": 5}
ASYNC = {"Prefer": "respond-async"}

#: each of these names its databases itself, among them files of SQLite
pytestmark = pytest.mark.sqlite


@pytest.fixture
def url(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """Provide the address of an empty database, through a pooler of transactions."""
    with running_pgbouncer(pgbouncer(request.config), postgres) as through:
        yield through(postgres.make())


def configure(home: Path, url: str | None) -> None:
    """Have the commands of a home use this database."""
    home.mkdir(exist_ok=True)
    (home / "config.yaml").write_text(json.dumps({"database": {"url": url}}))


def test_server_over_postgresql_keeps_what_it_answered(url: str, tmp_path: Path) -> None:
    home, own = tmp_path / "home", ("--set", f"database.url={url}")
    configure(home, url)
    with running_server(home, *own) as server:
        made = run(home, "keys", "create", "--name", "kept", "--tier", "pro", "--json")
        key = {"Authorization": f"Bearer {json.loads(made.stdout)['key']}"}
        with server.client(headers={**key, **ASYNC}) as client:
            tasks = [client.post(NATIVE, json=ECHO) for _ in range(5)]
            assert {task.status_code for task in tasks} == {202}
            places = [task.headers["location"] for task in tasks]
            for place in places:
                eventually(lambda at=place: client.get(at).json()["status"] == "completed")
        server.process.kill()
        server.process.wait(60)
    assert not (home / "bitinglip.db").exists()
    with running_server(home, *own) as server, server.client(headers=key) as client:
        assert [client.get(place).json()["status"] for place in places] == ["completed"] * 5
        listed = client.get("/api/v1/tasks").json()
        assert (listed["total"], listed["data"][0]["status"]) == (5, "completed")
        assert client.post(NATIVE, json=ECHO).status_code == 200
        assert client.get("/health").json()["checks"]["database"]["ok"]
        client.headers.update(server.headers)
        assert client.get("/api/v1/audit/verify").json()["valid"]
        copy = tmp_path / "copy.db"
        saved = run(home, "backup", str(copy))
        assert (saved.returncode, "api_keys 2" in saved.stderr) == (0, True), saved.stderr
        assert "database" in run(home, "doctor").stdout
        (other := Home(tmp_path / "other")).root.mkdir(mode=0o700)
        other.secret("any")
        own_of = {"database": {"url": url}, "gateways": {"shared": True, "folder": str(tmp_path)}}
        (found,) = gateways(Settings.model_validate(own_of), other)
        assert "secret.key is not the one" in found.detail
        assert "gateways.secret_file" in found.advice
    assert "kept" in run(home, "keys", "list").stdout
    assert run(home, "audit", "verify").returncode == 0
    (used,) = json.loads(run(home, "usage", "--json").stdout)
    assert (used["key_name"], 1 <= used["requests"] <= 6) == ("kept", True)
    configure(home, None)
    Home(home).database.write_bytes(copy.read_bytes())
    assert "kept" in run(home, "keys", "list").stdout


def test_home_is_copied_into_postgresql_and_back(postgres: PostgresServer, tmp_path: Path) -> None:
    home, url = tmp_path / "home", postgres.make()
    for name in ("one", "two ü"):
        assert run(home, "keys", "create", "--name", name).returncode == 0
    before = rows(Home(home).database)
    done = run(home, "db", "copy", url)
    assert (done.returncode, "database.url" in done.stderr) == (0, True), done.stderr
    again = run(home, "db", "copy", url)
    assert (again.returncode, "empty" in again.stderr) == (1, True), again.stderr
    assert rows(Home(home).database) == before
    Home(home).database.rename(tmp_path / "old.db")
    configure(home, url)
    listed = json.loads(run(home, "keys", "list", "--json").stdout)
    assert {key["name"] for key in listed} == {"one", "two ü", "admin"}
    assert "already" in run(home, "db", "migrate").stderr
    back = run(home, "db", "copy", "sqlite")
    assert back.returncode == 0, back.stderr
    assert rows(Home(home).database) == before
    assert run(home, "db", "copy", "sqlite").returncode == 1
    stale = run(home, "db", "copy", postgres.make())
    assert (stale.returncode, "may be old" in stale.stderr) == (1, True), stale.stderr
    configure(home, None)
    assert run(home, "audit", "verify").returncode == 0


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all that a file holds, by table."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = [name for (name,) in found]
        assert {*Table.metadata.tables, "alembic_version"} <= set(tables)
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in tables
        }


def test_password_of_postgresql_is_in_no_argument_and_no_output(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://me:geheim@/none?host={tmp_path}"
    home = tmp_path / "home"
    refused = run(home, "db", "copy", url)
    assert (refused.returncode, "PGPASSWORD" in refused.stderr) == (1, True)
    config = tmp_path / "other.yaml"
    config.write_text(f"database:\n  url: {url}\n")
    for command in (("config", "show"), ("doctor",), ("keys", "list"), ("db", "migrate")):
        done = run(home, *command, "--config", str(config))
        assert "geheim" not in done.stdout + done.stderr
    server = start_server(home, ("--config", str(config)))
    assert server.process.wait(60) == 1
    assert "geheim" not in server.log.read_text()
    assert "cannot be used" in server.log.read_text()


@pytest.mark.parametrize("url", ["mysql://h/d", "postgresql+psycopg://h", "nothing", "http://["])
def test_database_url_of_another_kind_is_refused(tmp_path: Path, url: str) -> None:
    done = run(tmp_path / "home", "config", "check", "--set", f"database.url={url}")
    assert (done.returncode, "postgresql+psycopg://" in done.stderr) == (2, True), done.stderr
