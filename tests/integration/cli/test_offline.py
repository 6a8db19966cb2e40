"""``models`` and ``keys`` on a home that no server runs on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.home import Home, HomeLock
from model_store.demo import make_demo_models, make_upstream_models
from model_store.store import ModelStore
from tests.support.cli_process import run
from tests.support.lora_files import write_text_lora
from tests.support.models.bark import make
from tests.support.server import running_server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def stocked(home: Path) -> Home:
    found = Home(home)
    found.create()
    make_demo_models(ModelStore(found.models))
    return found


@pytest.fixture
def locked(stocked: Home) -> Iterator[Home]:
    """Lock the home as a server does that has not yet written its address."""
    with HomeLock(stocked):
        yield stocked


@pytest.mark.sqlite  # a database that a URL names is asked, and keys need the home's secret
def test_offline_commands_that_read_make_nothing(home: Path) -> None:
    for arguments in (["models", "list"], ["keys", "list"], ["models", "show", "x"]):
        assert run(home, *arguments).stderr
    assert run(home, "models", "list", "--json").stdout == "[]\n"
    assert json.loads(run(home, "keys", "list", "--json").stdout) == []
    assert not home.exists()


def test_models_are_listed_without_a_server(stocked: Home) -> None:
    home = stocked.root
    make_upstream_models(ModelStore(stocked.models), {"elsewhere": "text"})
    rows = {
        row["model_id"]: row for row in json.loads(run(home, "models", "list", "--json").stdout)
    }
    assert {"demo-text", "demo-echo"} <= set(rows)
    shown = json.loads(run(home, "models", "show", "demo-text", "--json").stdout)
    assert shown.pop("supported_parameters")  # too long for a list
    assert {"fit": "fits", **shown} == rows["demo-text"]
    assert shown["status"] == "available"
    pairs = [line.split() for line in run(home, "models", "show", "elsewhere").stdout.splitlines()]
    assert ["size", "-"] in pairs  # its files are another server's
    unknown = run(home, "models", "show", "nope")
    assert unknown.returncode == 1
    assert unknown.stderr == (
        f"Error: there is no model 'nope'; available: {', '.join(sorted(rows))}\n"
    )


def test_models_are_shown_in_words(stocked: Home, tmp_path: Path) -> None:
    shown = run(stocked.root, "models", "show", "demo-text").stdout.splitlines()
    values = dict(line.split(maxsplit=1) for line in shown if not line.startswith("may set"))
    assert (values["pinned"], values["size"]) == ("no", "3.8 MB")
    base = stocked.models / "demo-text" / "files"
    lora = write_text_lora(base, tmp_path / "lora", named="org/other")
    told = run(stocked.root, "models", "import", str(lora), "--name", "lora").stderr
    assert told.splitlines()[0].startswith("Imported lora: adapter of org/other, ")
    assert "not in the store" in told.splitlines()[1]


def test_voices_are_shown_by_language_and_gender(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = run(home, "models", "import", str(make(tmp_path / "bark")), "--name", "bark")
    assert made.returncode == 0, made.stderr
    lines = run(home, "models", "show", "bark").stdout.splitlines()
    voices = [line.split("  ", 1) for line in lines if line.startswith("voices")]
    assert [(name, shown.strip()) for name, shown in voices] == [
        ("voices de male", "v2/de_speaker_0"),
        ("voices en male", "v2/en_speaker_0, v2/en_speaker_1"),
    ]


def test_import_of_a_folder_is_verified_and_removed(stocked: Home) -> None:
    home = stocked.root
    files = str(stocked.models / "demo-text" / "files")
    done = run(home, "models", "import", files, "--name", "org/mine")
    assert done.returncode == 0, done.stderr
    again = run(home, "models", "import", files, "--name", "org/mine")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert run(home, "models", "verify", "org/mine").returncode == 0
    assert run(home, "models", "remove", "org/mine").returncode == 0
    assert run(home, "models", "remove", "org/mine").returncode == 1


def test_verify_finds_damage_and_doctor_what_is_missing(stocked: Home) -> None:
    weights = stocked.models / "demo-text" / "files" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = run(stocked.root, "models", "verify", "demo-text")
    assert done.returncode == 1
    assert "demo-text is damaged: model.safetensors" in done.stderr
    os.truncate(weights, 10)
    (stocked.models / "stray").mkdir()
    found = json.loads(run(stocked.root, "doctor", "--json").stdout)
    models = [(one["level"], one["detail"]) for one in found if one["check"] == "models"]
    assert ("error", "demo-text: missing or cut off: model.safetensors") in models
    assert models[0][0] == "warning"
    assert "stray" in models[0][1]


def test_home_of_a_running_server_is_not_changed(locked: Home) -> None:
    for arguments in (["models", "remove", "demo-text"], ["keys", "create", "--name", "x"]):
        done = run(locked.root, *arguments)
        assert done.returncode == 1
        assert "is in use by" in done.stderr
    assert "still starting" in run(locked.root, "status").stderr
    assert run(locked.root, "models", "show", "demo-text").returncode == 0


def test_keys_are_made_shown_and_revoked(home: Path) -> None:
    made = run(home, "keys", "create", "--name", "ann", "--scope", "models:read", "--tier", "pro")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("blk_live_")
    assert secret not in made.stderr
    rows = json.loads(run(home, "keys", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["admin", "ann"]
    key_id = rows[1]["id"]
    assert (rows[1]["scopes"], rows[1]["rotate_by"]) == (["models:read"], None)
    aged = run(home, "keys", "list", "--json", BITINGLIP_SECURITY__KEY_ROTATION__MAX_AGE="90d")
    assert all(row["rotate_by"] > row["created_at"] for row in json.loads(aged.stdout))
    assert run(home, "keys", "revoke", key_id).returncode == 0
    shown = run(home, "keys", "show", key_id).stdout
    assert "revoked" in shown
    assert secret[-10:] not in shown
    assert run(home, "keys", "revoke", "nothing").returncode == 1


def test_keys_are_narrowed_changed_and_rotated(home: Path) -> None:
    narrowed = ("--model", "demo*", "--ip-range", "10.0.0.0/8", "--guard", "redact")
    made = json.loads(run(home, "keys", "create", "--name", "a", *narrowed, "--json").stdout)
    assert (made["models"], made["ip_ranges"]) == (["demo*"], ["10.0.0.0/8"])
    assert made["guard"] == "redact"
    patch = ("keys", "patch", made["id"])
    options = (
        "--tier",
        "pro",
        "--model",
        "x",
        "--model",
        "y",
        "--anywhere",
        "--no-guard",
        "--json",
    )
    changed = json.loads(run(home, *patch, *options).stdout)
    assert (changed["tier"], changed["models"], changed["ip_ranges"]) == ("pro", ["x", "y"], None)
    assert changed["guard"] is None
    assert run(home, *patch).returncode == 2
    assert run(home, *patch, "--model", "x", "--any-model").returncode == 2
    assert run(home, *patch, "--name", "x" * 129).stderr.count("\n") == 1
    rotated = run(home, "keys", "rotate", made["id"], "--grace", "1h")
    assert rotated.stdout.startswith(f"blk_live_{made['id']}_")
    assert rotated.stdout.strip() != made["key"]
    assert "The old secret ends" in rotated.stderr
    for wrong in (["nothing"], [made["id"], "--grace", "soon"]):
        assert run(home, "keys", "rotate", *wrong).returncode == 1


def test_keys_have_quotas_of_their_own(home: Path) -> None:
    quotas = ("--quota", "daily.tokens=1000", "--quota", "monthly.gpu_seconds=1.5")
    made = json.loads(run(home, "keys", "create", "--name", "a", *quotas, "--json").stdout)
    assert made["quotas"] == {"daily": {"tokens": 1000}, "monthly": {"gpu_seconds": 1.5}}
    shown = run(home, "keys", "show", made["id"]).stdout
    assert "daily.tokens=1000, monthly.gpu_seconds=1.5" in shown
    patch = ("keys", "patch", made["id"])
    changed = run(home, *patch, "--quota", "requests=5")
    assert "up to daily.requests=5." in changed.stderr
    assert json.loads(run(home, *patch, "--no-quotas", "--json").stdout)["quotas"] is None
    assert run(home, *patch, "--quota", "daily.tokens=much").returncode == 2
    assert run(home, "usage", "--json").stdout == "[]\n"
    assert "Nothing was used" in run(home, "usage").stderr


@pytest.mark.parametrize(
    "option", [["--scope", "all"], ["--expires", "soon"], ["--quota", "daily.words=1"]]
)
def test_keys_error_is_one_clear_line(home: Path, option: list[str]) -> None:
    done = run(home, "keys", "create", "--name", "ann", *option)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_keys_made_without_a_server_open_the_server(home: Path) -> None:
    """The same secret.key, the same purpose; and the first start still has its admin key."""
    secret = run(home, "keys", "create", "--name", "ann").stdout.strip()
    settings = ("--set", "demo=never")
    with running_server(home, *settings) as server:
        listed = run(home, "keys", "list", "--json")
        assert [row["name"] for row in json.loads(listed.stdout)] == ["admin", "ann"]
        asked = run(home, "models", "list", "--json", BITINGLIP_API_KEY=secret)
        assert (asked.returncode, asked.stdout) == (0, "[]\n")
        assert run(home, "keys", "list", BITINGLIP_API_KEY=secret).returncode == 1
        ann, rows = json.loads(listed.stdout)[1]["id"], ("keys", "list", "--json")
        assert run(home, "keys", "patch", ann, "--name", "eve").returncode == 0
        assert run(home, "keys", "rotate", ann, "--grace", "0s").returncode == 0
        assert json.loads(run(home, *rows).stdout)[1]["name"] == "eve"
        assert run(home, "models", "list", BITINGLIP_API_KEY=secret).returncode == 1
        assert server.key
