"""Commands that look after a store which no server has open."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.home import Home
from model_store.store import ModelStore
from tests.support.cli_runner import Ran, command
from tests.support.hub import REPO, FakeHub, Fault
from tests.support.large_models import WEIGHTS, large_hub, renew
from tests.support.model_folders import llama
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with large_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Path:
    """Provide a home into which the model was pulled."""
    home = tmp_path_factory.mktemp("care") / "home"
    pulled = models(home, hub, "pull", REPO)
    assert pulled.code == 0, pulled.err
    return home


def models(home: Path, hub: FakeHub, *words: str, stdin: str = "") -> Ran:
    return command(home, "models", *words, stdin=stdin, BITINGLIP_HUB__ENDPOINT=hub.url)


def test_pull_dry_run_says_what_would_be_fetched_and_keeps_nothing(
    home: Path, hub: FakeHub
) -> None:
    sent = hub.sent.get(WEIGHTS, 0)
    done = models(home, hub, "pull", REPO, "--name", "other", "--dry-run")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert [WEIGHTS, "4.2", "MB", "4.2", "MB"] in rows  # the store has them
    plan, memory = done.err.splitlines()[-2:]
    assert "3 files, 4.2 MB" in plan
    assert memory.startswith("Memory: it fits on cpu and takes "), memory
    assert "as bfloat16" in memory
    assert hub.sent.get(WEIGHTS, 0) == sent
    elsewhere = command(home, "models", "pull", REPO, "--dry-run", BITINGLIP_URL="http://x:1")
    assert elsewhere.code == 1
    assert "unset BITINGLIP_URL" in elsewhere.last_line


def test_pull_takes_a_token_from_its_input(home: Path, hub: FakeHub) -> None:
    asked = len(hub.requests)
    done = models(home, hub, "pull", REPO, "--name", "mine", "--token-stdin", stdin="hf_of_mine\n")
    assert done.code == 0, done.err
    assert {token for _, token in hub.requests[asked:]} == {"Bearer hf_of_mine"}
    assert "hf_of_mine" not in done.err


def test_verify_repairs_what_differs_and_reads_what_came_from_elsewhere(
    home: Path, hub: FakeHub, tmp_path: Path
) -> None:
    folder = str(llama(tmp_path / "other"))
    assert models(home, hub, "import", folder, "--name", "aside").code == 0
    path = ModelStore(Home(home).models).path(REPO) / WEIGHTS
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:-1] + b"?")
    told = models(home, hub, "verify", "--all")
    assert told.code == 1
    assert f"{REPO}: {WEIGHTS}: has other contents" in told.out
    assert "is damaged" in told.last_line
    mended = models(home, hub, "verify", "--all", "--repair")
    assert mended.code == 0, mended.err
    assert "aside is whole." in mended.err
    assert f" is whole again: {WEIGHTS}." in mended.err
    assert mended.last_line.startswith(f"{REPO} is whole")
    path = ModelStore(Home(home).models).path(REPO) / WEIGHTS
    assert path.read_bytes() == whole
    aside = ModelStore(Home(home).models).path("aside") / WEIGHTS
    aside.chmod(0o600)
    aside.write_bytes(b"?")
    told = models(home, hub, "verify", "aside", "--repair")
    assert (told.code, path.read_bytes()) == (1, whole)
    assert "remove one from elsewhere" in told.last_line
    assert models(home, hub, "remove", "aside").code == 0


def test_update_says_which_files_have_changed(home: Path, hub: FakeHub) -> None:
    before = hub.files
    renew(hub)
    hub.files, after = before, hub.files
    hub.commit("7" * 40, after)
    planned = models(home, hub, "update", REPO, "--dry-run")
    assert planned.out == f"changed: {WEIGHTS}\n"
    assert planned.last_line == f"{REPO} would change; 4.2 MB are to be fetched."
    done = models(home, hub, "update", REPO)
    assert (done.code, done.out) == (0, f"changed: {WEIGHTS}\n"), done.err
    shown = json.loads(models(home, hub, "show", REPO, "--json").out)
    assert shown["revision"] == "7" * 40


def test_export_makes_a_folder(home: Path, hub: FakeHub) -> None:
    target = home.parent / "exported"
    done = models(home, hub, "export", REPO, str(target))
    assert done.code == 0, done.err
    assert {path.name for path in target.iterdir()} >= {"config.json", WEIGHTS}


def test_gc_keeps_pinned_models_and_says_first_what_it_does(home: Path, hub: FakeHub) -> None:
    if "mine" not in ModelStore(Home(home).models).names():  # from the test of tokens
        assert models(home, hub, "pull", REPO, "--name", "mine").code == 0
    assert models(home, hub, "pin", REPO).code == 0
    models(home, hub, "note", REPO, "the good one")
    rows = json.loads(models(home, hub, "list", "--json").out)
    told = {row["model_id"]: (row["pinned"], row["notes"]) for row in rows}
    assert told == {REPO: (True, "the good one"), "mine": (False, "")}
    planned = models(home, hub, "gc", "--max-bytes", "0")
    assert "mine" in planned.out
    assert planned.last_line.startswith("--yes removes this")
    done = models(home, hub, "gc", "--max-bytes", "0", "--yes", "--json")
    assert "mine" in {each["name"] for each in json.loads(done.out)}
    assert ModelStore(Home(home).models).names() == [REPO]


@pytest.mark.parametrize(
    "words", [("verify",), ("verify", "--all", "m"), ("gc", "--yes", "--dry-run")]
)
def test_care_that_contradicts_itself_is_wrong_usage(
    home: Path, hub: FakeHub, words: tuple[str, ...]
) -> None:
    assert models(home, hub, *words).code == 2


def test_pull_asks_a_hub_again_that_has_begun_to_deliver(
    home: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.hub.retries.nap", lambda *_: None)
    monkeypatch.setattr("model_store.hub.retries.FIRST_PAUSE", 0.01)
    renew(hub)
    hub.near_faults[WEIGHTS] = Fault(times=8, status=503)  # a pull by itself tries six times
    done = models(home, hub, "pull", REPO, "--name", "patient")
    assert done.code == 0, done.err
    assert "(HTTP status 503); pull again to go on. It is asked again in " in done.err
    assert done.err.count("Revision") == 1
    hub.down = True
    try:
        away = models(home, hub, "pull", REPO, "--name", "away")
    finally:
        hub.down = False
    assert away.code == 1, "what has never answered is not waited for"
    assert "asked again" not in away.err


def test_pull_joins_that_of_another_program(home: Path, hub: FakeHub) -> None:
    store, asked = ModelStore(Home(home).models), len(hub.requests)

    def listings() -> int:
        return sum(path.startswith("/api/") for path, _ in hub.requests[asked:])

    def end_after_a_look() -> None:
        with store.pulling(REPO):
            held.set()
            eventually(lambda: listings() > 1)  # the command has found it, and looks again

    held = threading.Event()
    other = threading.Thread(target=end_after_a_look)
    other.start()
    held.wait()
    done = models(home, hub, "pull", REPO, "--name", "joined")
    other.join()
    assert done.code == 0, done.err
    assert "Another program pulls it already" in done.err
