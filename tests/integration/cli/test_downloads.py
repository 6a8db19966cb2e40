"""Commands that have a running server download and change models."""

import json
from collections.abc import Iterator

import pytest

from tests.support.api_server import Served, serve
from tests.support.cli_process import terminal
from tests.support.cli_runner import Ran, command
from tests.support.hub import REPO, FakeHub
from tests.support.large_models import WEIGHTS, hold, large_hub, let_go, renew


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with large_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), hub={"endpoint": hub.url}) as served:
        yield served


def models(served: Served, *words: str) -> Ran:
    return command(served.home.root, "models", *words, BITINGLIP_URL=served.url, COLUMNS="200")


@pytest.fixture(scope="module")
def pulled(served: Served) -> Ran:
    """Provide the output of the command that pulled the model tiny."""
    return models(served, "pull", REPO, "--name", "tiny", "--priority", "high")


def test_pull_by_a_running_server_shows_how_far_it_is(served: Served, pulled: Ran) -> None:
    assert (pulled.code, pulled.out) == (0, ""), pulled.err
    assert pulled.err.startswith(f"The server at {served.url} pulls {REPO}\n")
    assert pulled.last_line == "Pulled tiny: text, 4.2 MB, verified."
    (row,) = json.loads(models(served, "downloads", "--json").out)
    assert (row["model"], row["state"], row["priority"]) == ("tiny", "completed", "high")
    again = models(served, "pull", REPO, "--name", "tiny")
    assert again.code == 1
    assert "has a model 'tiny' already" in again.last_line


def test_pull_that_is_interrupted_goes_on_in_the_server(served: Served, hub: FakeHub) -> None:
    renew(hub)
    hold(hub)
    words = ("models", "pull", REPO, "--name", "going")
    with terminal(served.home.root, *words, BITINGLIP_URL=served.url) as pull:
        pull.wait_for("going")
        pull.wait_for(r"1\.\d/4\.2")
        pull.interrupt()
        pull.wait_for("The server goes on with it")
        assert pull.wait_for_end() == 130
    assert "Traceback" not in pull.shown
    (line,) = [line for line in models(served, "downloads").out.splitlines() if "going" in line]
    assert "downloading" in line.split()
    cancelled = models(served, "cancel", "going", "--purge")
    assert cancelled.code == 0, cancelled.err
    assert "what had come is removed" in cancelled.last_line
    let_go(hub)
    missing = models(served, "cancel", "nothing")
    assert missing.code == 1
    assert "no download of 'nothing'" in missing.last_line


def test_pull_that_the_hub_refuses_is_one_line_of_the_server(served: Served) -> None:
    done = models(served, "pull", "no/such")
    assert done.code == 1
    assert "no/such" in done.last_line


def test_models_are_looked_after_by_the_running_server(
    served: Served, hub: FakeHub, pulled: Ran
) -> None:
    assert pulled.code == 0
    renew(hub)
    done = models(served, "update", "tiny")
    assert (done.code, done.out) == (0, f"changed: {WEIGHTS}\n"), done.err
    assert models(served, "verify", "tiny", "--repair").last_line == "tiny is whole."
    assert models(served, "pin", "tiny").code == 0
    listed = models(served, "list").out
    (line,) = [line for line in listed.splitlines() if line.startswith("tiny")]
    assert line.split()[-3:] == ["yes", "available,", "pinned"]
    planned = models(served, "gc", "--max-bytes", "0")
    assert "demo" in planned.out
    assert "tiny" not in planned.out
