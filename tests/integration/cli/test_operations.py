"""The commands that look at and change models, workers and memory, on a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_process import run, terminal
from tests.support.server import Server, running_server

GB = 1_000_000_000


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a made-up card of 24 GB, and models of 10, 20 and 30 GB."""
    sizes = {"small": 10, "large": 20, "huge": 30}
    sets = ["devices.fake=[{name: card, memory_bytes: 24000000000}]"]
    sets += [f"models.{name}.engine=fake" for name in sizes]
    sets += [f"models.{name}.fake.memory_bytes={size * GB}" for name, size in sizes.items()]
    home = tmp_path_factory.mktemp("card") / "home"
    with running_server(home, *(word for value in sets for word in ("--set", value))) as server:
        yield server


def test_fit_says_whether_where_and_after_which_eviction(card: Server) -> None:
    assert run(card.home, "models", "load", "small").returncode == 0
    done = run(card.home, "models", "fit", "large")
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "large fits on fake0 after unloading small.",
    )
    assert run(card.home, "models", "fit", "small").stdout.startswith("small is loaded on fake0.")
    found = json.loads(run(card.home, "models", "fit", "large", "--json").stdout)
    assert (found["verdict"], found["evict"]) == ("fits_after_eviction", ["small"])
    assert found["needs"]["total_bytes"] == 20 * GB


def test_fit_refuses_what_cannot_fit_with_the_numbers(card: Server) -> None:
    done = run(card.home, "models", "fit", "nope")
    assert (done.returncode, "models pull REPO --dry-run" in done.stderr) == (1, True)
    done = run(card.home, "models", "fit", "huge")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "huge needs 30.0 GB, and 24.0 GB can be had."
    refused = run(card.home, "models", "load", "huge")
    assert refused.returncode == 1
    assert "huge needs 30.0 GB" in refused.stderr


def test_bench_measures_a_model_and_refuses_what_it_cannot(card: Server) -> None:
    asked = ("bench", "small", "--concurrency", "1", "--concurrency", "3", "--max-tokens", "5")
    done = run(card.home, *asked)
    assert done.returncode == 0, done.stderr
    assert "Memory moves" not in done.stderr, "the fake engine reads no weights"
    head, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["AT-ONCE", "REQUESTS/S", "TOKENS/S", "SPEED"]
    assert [line.split()[0] for line in rows] == ["1", "3"]
    found = json.loads(run(card.home, *asked, "--json").stdout)
    assert [(each["requests"], each["errors"]) for each in found["runs"]] == [(4, {}), (6, {})]
    assert all(each["tokens_per_second"] > 0 for each in found["runs"])
    refused = run(card.home, "bench", "nothing")
    assert refused.returncode == 1
    assert "not available" in refused.stderr


def test_fit_works_without_a_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_server(home):
        pass
    done = run(home, "models", "fit", "demo-text")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "demo-text fits on cpu.")
    rows = json.loads(run(home, "models", "list", "--json").stdout)
    assert {row["fit"] for row in rows} == {"fits"}
    little = {"BITINGLIP_DEVICES__CPU_MEMORY_BYTES": "600000000"}
    done = run(home, "models", "fit", "demo-text", **little)
    assert done.returncode == 1
    assert "--set models.demo-text.dtype=bfloat16" in done.stdout


def test_workers_are_shown_and_drained(card: Server) -> None:
    assert run(card.home, "models", "load", "small").returncode == 0
    shown = run(card.home, "workers", "show", "small/0")
    assert ["state", "ready"] in [line.split() for line in shown.stdout.splitlines()]
    assert json.loads(run(card.home, "workers", "show", "small/0", "--json").stdout)["stderr"] == []
    assert "there is no worker" in run(card.home, "workers", "show", "other/0").stderr
    drained = run(card.home, "workers", "drain", "small/0")
    assert (drained.returncode, drained.stderr.strip()) == (0, "small/0 is drained.")
    assert json.loads(run(card.home, "workers", "list", "--json").stdout) == []


def test_status_and_top_show_the_memory(card: Server) -> None:
    assert run(card.home, "models", "load", "small").returncode == 0
    for command in (["status"], ["top", "--once"]):
        lines = run(card.home, *command).stdout.splitlines()
        (device,) = [line for line in lines if line.startswith("fake0")]
        assert device.split()[-9:-3] == ["10.0", "GB", "14.0", "GB", "24.0", "GB"]
        assert any(line.startswith("small ") for line in lines)
    found = json.loads(run(card.home, "top", "--json").stdout)
    assert found["reservations"] == [
        {"worker": "small/0", "model": "small", "device": "fake0", "bytes": 10 * GB}
    ]


@pytest.mark.parametrize("leave", ["q", "\x03"])
def test_top_is_live_and_leaves_the_terminal_as_it_was(card: Server, leave: str) -> None:
    with terminal(card.home, "top", "--interval", "0.2") as screen:
        screen.wait_for("fake0")
        screen.wait_for("requests/s")
        screen.type(leave)
        assert screen.wait_for_end() == 0
    assert screen.shown.rstrip().endswith("\x1b[?1049l")
