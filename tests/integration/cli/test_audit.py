"""``bitinglip audit``, without a server and with one, and after that one was killed."""

import json
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from tests.support.cli_process import run
from tests.support.model_folders import llama
from tests.support.other_program import connected
from tests.support.server import running_server


def listed(home: Path, *arguments: str) -> list[dict[str, Any]]:
    done = run(home, "audit", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_audit_command_without_a_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert listed(home) == []
    assert run(home, "audit", "verify").returncode == 0
    folder = llama(tmp_path / "model")
    assert run(home, "models", "import", str(folder), "--name", "mine").returncode == 0
    made = json.loads(run(home, "keys", "create", "--name", "laptop", "--json").stdout)
    assert run(home, "keys", "revoke", made["id"]).returncode == 0
    assert run(home, "models", "remove", "mine").returncode == 0
    copy = tmp_path / "copy.db"
    assert run(home, "backup", str(copy)).returncode == 0
    rows = listed(home)
    assert {(row["action"], row["target"]) for row in rows if row["actor"] == "cli"} == {
        ("model.import", "mine"),
        ("key.create", made["id"]),
        ("key.revoke", made["id"]),
        ("model.remove", "mine"),
        ("backup", str(copy)),
    }
    assert all(row["actor_name"] for row in rows if row["actor"] == "cli")
    assert [row["target"] for row in listed(home, "--action", "key", "--limit", "1")] == [
        made["id"]
    ]
    shown = run(home, "audit", "list", "--target", "mine")
    assert "model.import" in shown.stdout
    assert "kind was text" in shown.stdout
    assert run(home, "audit", "list", "--action", "nonsense").returncode == 1
    valid = json.loads(run(home, "audit", "verify", "--json").stdout)
    assert valid == {"valid": True, "rows": len(rows), "first_bad": None}
    with connected(home / "bitinglip.db") as database:
        update = text("UPDATE audit_log SET actor_name = :name WHERE seq = 2")
        database.execute(update, {"name": "\x1b[2J"})
    broken = run(home, "audit", "verify", "--json")
    assert (broken.returncode, json.loads(broken.stdout)["first_bad"]) == (1, 2)
    assert "entry 2" in broken.stderr
    assert "\x1b" not in run(home, "audit", "list").stdout


def test_audit_command_with_a_server_and_after_its_kill(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_server(home, "--set", "demo=never") as server:
        assert run(home, "backup", str(tmp_path / "copy.db")).returncode == 0
        made = json.loads(run(home, "keys", "create", "--name", "laptop", "--json").stdout)
        (row,) = listed(home, "--action", "key.create", "--target", made["id"])
        assert row["actor_name"] == "admin"
        assert row["address"] == "local"
        verified = run(home, "audit", "verify")
        assert (verified.returncode, "whole" in verified.stderr) == (0, True)
        path = f"{server.url}/api/v1/keys/{made['id']}"
        assert httpx.delete(path, headers=server.headers).status_code == 204
        server.process.kill()  # right after the answer
        server.process.wait(60)
    rows = listed(home)
    assert rows[0]["action"] in ("key.revoke", "backup")
    assert {"key.revoke", "backup", "server.start"} <= {row["action"] for row in rows}
    assert run(home, "audit", "verify").returncode == 0
    with running_server(home, "--set", "demo=never"):
        (start, first) = listed(home, "--action", "server.start")
        assert start["after"]["ended_without_stop"] == first["entry"]
    assert listed(home)[0]["action"] == "server.stop"
