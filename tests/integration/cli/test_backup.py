"""``bitinglip backup``: a copy that a start can be made from."""

import json
import re
import shutil
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from bitinglip.db.files import prepare
from bitinglip.home import Home
from tests.support.cli_process import COMMAND, ROOT, environ, run
from tests.support.server import running_server, start_server

#: tests/integration/postgres copies homes out of PostgreSQL
pytestmark = pytest.mark.sqlite
NO_DEMO = ("--set", "demo=never")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Provide a home with a database, on which no server runs."""
    home = Home(tmp_path / "home")
    home.create()
    prepare(home.database)
    return home.root


def refused(home: Path, *arguments: str) -> str:
    done = run(home, "backup", *arguments)
    assert done.returncode == 1, done
    return done.stderr


def _restore_steps() -> str:
    """Return the commands of the page on backups that restore one."""
    text = (ROOT / "docs" / "backups.md").read_text()
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return blocks[1]


def test_backup_of_a_running_server_brings_its_keys_back(tmp_path: Path) -> None:
    home, copy = tmp_path / ".bitinglip", tmp_path / "bitinglip-backup.db"
    with running_server(home, *NO_DEMO) as server:
        key = json.loads(run(home, "keys", "create", "--name", "kept", "--json").stdout)["key"]
        done = run(home, "backup", str(copy))
        assert done.returncode == 0, done
        assert "api_keys 2" in done.stderr
        assert "secret.key" in done.stderr
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    shutil.copy(home / "secret.key", tmp_path / "bitinglip-secret.key")
    Home(home).database.write_bytes(b"SQLite format 3\0" + bytes(5000))
    Home(home).database.with_name("bitinglip.db-wal").write_bytes(b"stale")
    Home(home).secret_key.unlink()
    broken = start_server(home, NO_DEMO)
    assert broken.process.wait(60) == 1
    assert "restore a backup" in broken.log.read_text()
    restore = _restore_steps()
    assert restore.count("\n") == 3
    subprocess.run(["sh", "-ec", restore], check=True, env={"HOME": str(tmp_path)})
    with running_server(home, *NO_DEMO) as server:
        bearer = {"Authorization": f"Bearer {key}"}
        assert httpx.get(server.url + "/v1/models", headers=bearer).status_code == 200


def test_backup_is_made_without_a_server(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert run(home, "backup", str(copy)).returncode == 0
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM api_keys").fetchall() == [(0,)]
    assert list(tmp_path.glob("copy.db?*")) == []


def test_backup_replaces_a_file_only_when_told_to(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_text("precious")
    assert "--force" in refused(home, str(copy))
    assert copy.read_text() == "precious"
    assert run(home, "backup", "--force", str(copy)).returncode == 0
    assert copy.read_bytes().startswith(b"SQLite format 3")


def test_backup_that_cannot_be_made_says_why_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert "there is no database" in refused(tmp_path / "other", str(copy))
    assert "is a folder" in refused(home, str(tmp_path))
    assert "is not a folder" in refused(home, str(tmp_path / "missing" / "copy.db"))
    database = Home(home).database
    assert "the database itself" in refused(home, str(database), "--force")
    data = database.read_bytes()
    database.write_bytes(data[:5000])
    assert "damaged" in refused(home, str(copy))
    assert list(tmp_path.glob("copy.db*")) == []


def test_backup_to_a_full_disk_leaves_nothing(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *COMMAND, "backup", str(copy)],
        check=False,
        capture_output=True,
        text=True,
        env=environ(home),
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    assert f"cannot be copied to {copy}" in done.stderr
    assert list(tmp_path.glob("copy.db*")) == []
