"""Commands that look after a store which no server has open."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip.home import Home
from model_store.store import ModelStore
from tests.support.cli_process import run
from tests.support.hub import REPO, FakeHub
from tests.support.large_models import WEIGHTS, large_hub, renew


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with large_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Path:
    """A home into which the model was pulled."""
    home = tmp_path_factory.mktemp("care") / "home"
    pulled = models(home, hub, "pull", REPO)
    assert pulled.returncode == 0, pulled.stderr
    return home


def models(home: Path, hub: FakeHub, *words: str, stdin: str = "", **more: str) -> Any:
    environ = {"BITINGLIP_HUB__ENDPOINT": hub.url, "no_proxy": "127.0.0.1", "HF_TOKEN": ""}
    return run(home, "models", *words, stdin=stdin, **environ, **more)


def last_line(done: Any) -> str:
    return str(done.stderr.splitlines()[-1])


def test_pull_dry_run_says_what_would_be_fetched_and_keeps_nothing(
    home: Path, hub: FakeHub
) -> None:
    sent = hub.sent.get(WEIGHTS, 0)
    done = models(home, hub, "pull", REPO, "--name", "other", "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [WEIGHTS, "4.2", "MB", "4.2", "MB"] in rows  # the store has them
    assert "3 files, 4.2 MB" in last_line(done)
    assert hub.sent.get(WEIGHTS, 0) == sent


def test_pull_takes_a_token_from_its_input(home: Path, hub: FakeHub) -> None:
    asked = len(hub.requests)
    done = models(home, hub, "pull", REPO, "--name", "mine", "--token-stdin", stdin="hf_of_mine\n")
    assert done.returncode == 0, done.stderr
    assert {token for _, token in hub.requests[asked:]} == {"Bearer hf_of_mine"}
    assert "hf_of_mine" not in done.stderr


def test_verify_repairs_what_differs(home: Path, hub: FakeHub) -> None:
    path = ModelStore(Home(home).models).path(REPO) / WEIGHTS
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:-1] + b"?")
    told = models(home, hub, "verify", "--all")
    assert told.returncode == 1
    assert f"{REPO}: {WEIGHTS}: holds other bytes" in told.stdout
    assert "is damaged" in last_line(told)
    mended = models(home, hub, "verify", REPO, "--repair")
    assert mended.returncode == 0, mended.stderr
    assert last_line(mended) == f"{REPO} is whole again: {WEIGHTS}."
    assert (ModelStore(Home(home).models).path(REPO) / WEIGHTS).read_bytes() == whole


def test_update_says_which_files_have_changed(home: Path, hub: FakeHub) -> None:
    before = hub.files
    renew(hub)
    hub.files, after = before, hub.files
    hub.commit("7" * 40, after)
    done = models(home, hub, "update", REPO)
    assert (done.returncode, done.stdout) == (0, f"changed: {WEIGHTS}\n"), done.stderr
    shown = json.loads(models(home, hub, "show", REPO, "--json").stdout)
    assert shown["revision"] == "7" * 40


def test_export_makes_a_folder(home: Path, hub: FakeHub) -> None:
    target = home.parent / "exported"
    done = models(home, hub, "export", REPO, str(target))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in target.iterdir()} >= {"config.json", WEIGHTS}


def test_gc_keeps_pinned_models_and_says_first_what_it_does(home: Path, hub: FakeHub) -> None:
    assert models(home, hub, "pin", REPO).returncode == 0
    models(home, hub, "note", REPO, "the good one")
    rows = json.loads(models(home, hub, "list", "--json").stdout)
    told = {row["model_id"]: (row["pinned"], row["notes"]) for row in rows}
    assert told == {REPO: (True, "the good one"), "mine": (False, "")}
    planned = models(home, hub, "gc", "--max-bytes", "0")
    assert "mine" in planned.stdout
    assert last_line(planned).startswith("--yes removes this")
    done = models(home, hub, "gc", "--max-bytes", "0", "--yes", "--json")
    assert "mine" in {each["name"] for each in json.loads(done.stdout)}
    assert ModelStore(Home(home).models).names() == [REPO]
