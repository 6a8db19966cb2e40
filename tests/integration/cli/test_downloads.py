"""Commands that have a running server download: real commands, a real server, a small hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import Served, serve
from tests.support.cli_process import run, terminal
from tests.support.hub import REPO, FakeHub
from tests.support.large_models import SLOW, large_hub, renew


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with large_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), hub={"endpoint": hub.url}) as served:
        yield served


@pytest.fixture
def home(served: Served, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return served.home.root


def test_pull_by_a_running_server_shows_how_far_it_is(
    served: Served, hub: FakeHub, home: Path
) -> None:
    hub.slow = 0.01
    done = run(home, "models", "pull", REPO, "--name", "tiny", BITINGLIP_URL=served.url)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first == f"The server at {served.url} pulls {REPO}"
    assert last.startswith("Pulled tiny: text, 4.2 MB")
    (row,) = json.loads(run(home, "models", "downloads", "--json", BITINGLIP_URL=served.url).stdout)
    assert (row["model"], row["state"]) == ("tiny", "completed")
    again = run(home, "models", "pull", REPO, "--name", "tiny", BITINGLIP_URL=served.url)
    assert again.returncode == 1
    assert "has a model 'tiny' already" in again.stderr.splitlines()[-1]


def test_pull_that_is_interrupted_goes_on_in_the_server(
    served: Served, hub: FakeHub, home: Path
) -> None:
    renew(hub)
    hub.slow = SLOW
    with terminal(
        home, "models", "pull", REPO, "--name", "going", BITINGLIP_URL=served.url
    ) as pull:
        pull.wait_for("going")
        pull.wait_for(r"[1-9][\d.]*/4\.2")
        pull.interrupt()
        pull.wait_for("The server goes on with it")
        assert pull.wait_for_end() == 130
    assert "Traceback" not in pull.shown
    shown = run(home, "models", "downloads", BITINGLIP_URL=served.url).stdout
    assert "going" in shown
    cancelled = run(home, "models", "cancel", "going", "--purge", BITINGLIP_URL=served.url)
    assert cancelled.returncode == 0, cancelled.stderr
    missing = run(home, "models", "cancel", "nothing", BITINGLIP_URL=served.url)
    assert missing.returncode == 1
    assert "no download of 'nothing'" in missing.stderr


def test_pull_that_the_hub_refuses_is_one_line_of_the_server(served: Served, home: Path) -> None:
    done = run(home, "models", "pull", "no/such", BITINGLIP_URL=served.url)
    assert done.returncode == 1
    assert "no/such" in done.stderr.splitlines()[-1]


def test_update_and_list_go_through_the_running_server(served: Served, home: Path) -> None:
    done = run(home, "models", "update", "tiny", BITINGLIP_URL=served.url)
    assert done.returncode == 0, done.stderr
    whole = run(home, "models", "verify", "tiny", "--repair", BITINGLIP_URL=served.url)
    assert whole.stderr.splitlines()[-1] == "tiny is whole."
    assert run(home, "models", "pin", "tiny", BITINGLIP_URL=served.url).returncode == 0
    listed = run(home, "models", "list", BITINGLIP_URL=served.url, COLUMNS="200").stdout
    (line,) = [line for line in listed.splitlines() if line.startswith("tiny")]
    assert line.split()[-3:] == ["yes", "available,", "pinned"]
    planned = run(home, "models", "gc", "--max-bytes", "0", BITINGLIP_URL=served.url)
    assert "demo" in planned.stdout
    assert "tiny" not in planned.stdout
