"""The tables of status and top: at every width, with many models, with fields missing."""

from typing import Any

import pytest
from rich.console import Console

from cli.show.tables import Rates, board

DEVICE = {
    "id": "0",
    "name": "NVIDIA H100 80GB HBM3",
    "kind": "cuda",
    "memory_bytes": 80_000_000_000,
    "used_bytes": 50_000_000_000,
    "foreign_bytes": 20_000_000_000,
    "reserved_bytes": 40_000_000_000,
    "free_bytes": 20_000_000_000,
    "utilisation": 0.5,
    "temperature_c": 41.0,
    "power_w": 120.5,
}
WORKER = {
    "id": "a/0",
    "pid": 4242,
    "model": "a",
    "kind": "text",
    "devices": ["0"],
    "state": "busy",
    "in_flight": 3,
    "restarts": 1,
    "memory_bytes": 40_000_000_000,
    "started_at": "2026-11-23T09:00:00.000Z",
    "last_heartbeat": None,
    "cause": None,
}


def model(name: str, **facts: Any) -> dict[str, Any]:
    idle = dict.fromkeys(("cause", "oldest_wait", "eta", "progress", "idle_seconds"))
    counts = {"queued": 0, "running": 0, "replicas": 1, "ready": 0, "pinned": False}
    return {"model_id": name, "status": "available", **idle, **counts, **facts}


def status(**facts: Any) -> dict[str, Any]:
    found = {"url": "http://x", "status": "running", "in_flight": 3, "queued": 1, "load": 0.42}
    return {**found, "devices": [DEVICE], "models": [], "workers": [WORKER], **facts}


def shown(found: dict[str, Any], width: int = 120, rates: Rates | None = None) -> list[str]:
    screen = Console(width=width, markup=False, highlight=False, emoji=False)
    with screen.capture() as captured:
        screen.print(board(found, rates, width=width, most_models=5))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_table_lines_are_no_wider_than_the_terminal(width: int) -> None:
    lines = shown(status(models=[model("a" * 20, status="ready", running=2)]), width)
    assert all(len(line) <= width for line in lines)
    assert any("42%" in line for line in lines)


def test_bar_is_in_proportion() -> None:
    line, legend = [line for line in shown(status()) if "█" in line]
    assert legend == "█ our models  ▒ other programs  · free"
    ours, theirs, free = (line.count(each) for each in "█▒·")
    assert ours == pytest.approx(2 * theirs, abs=1)
    assert free == pytest.approx(theirs, abs=1)


def test_top_shows_active_workers_first_and_counts_the_rest() -> None:
    models = [model(f"idle{n}") for n in range(20)]
    models += [model("waiting", queued=4, status="loading", progress=0.4, oldest_wait=2.0, eta=3.2)]
    lines = shown(status(models=models))
    first = next(i for i, line in enumerate(lines) if line.startswith("MODEL")) + 1
    assert lines[first].split()[:3] == ["waiting", "loading", "40%"]
    assert lines[first].split()[-5:] == ["2.0", "s", "3.2", "s", "-"]
    assert "... 16 more" in lines


def test_top_tells_where_the_files_of_a_model_are_copied_to() -> None:
    copying = {"node": "n1", "bytes": 4, "total_bytes": 10}
    models = [model("big", status="loading", progress=0.4, copying=copying)]
    assert any("loading 40%, copying to n1" in line for line in shown(status(models=models)))


def test_top_shows_rates_once_they_are_known() -> None:
    assert "requests/s" not in shown(status())[0]
    assert (
        "12.5 requests/s, tokens/s 10 in 1,000 out"
        in shown(status(), rates=Rates(12.5, 10, 1000))[0]
    )


def test_top_works_with_an_older_server() -> None:
    old = status(models=[{"model_id": "a", "status": "ready", "cause": None, "queued": 0}])
    del old["devices"], old["load"]
    assert any(line.startswith("a ") for line in shown(old))


def test_table_escapes_names() -> None:
    lines = shown(status(models=[model("[bold]x[/bold]\x1b[31m")]))
    assert any("[bold]x[/bold][31m" in line for line in lines)
    assert not any("\x1b[31m" in line for line in lines)


def test_device_that_is_not_well_is_told_of_below_the_table() -> None:
    lost = DEVICE | {"state": "lost", "reason": "The card fell off the bus: restart the machine."}
    doubtful = DEVICE | {"id": "1", "state": "doubtful", "reason": "It does not answer."}
    lines = shown(status(devices=[DEVICE | {"state": "well", "reason": None}, lost, doubtful]))
    assert "0 is lost: The card fell off the bus: restart the machine." in lines
    assert "1 is doubtful: It does not answer." in lines
    lines = shown(status(devices=[DEVICE | {"slowed_by": ["heat", "power limit"]}]))
    assert "0 is slowed by heat and power limit" in lines
    lines = shown(status(missing_card="No driver is installed: install one."))
    assert "A card is not used: No driver is installed: install one." in lines


_HEADS = (
    "DEVICE NAME MEMORY RESERVED FREE TOTAL BUSY HEAT POWER MODEL STATUS REPLICAS RUNNING QUEUED "
    "WAITED ETA UNUSED WORKER STATE PID DEVICES RESTARTS AGE CAUSE"
)
COLUMNS = set(_HEADS.split())


@pytest.mark.parametrize("width", [48, 60, 72, 80, 100, 130])
def test_table_leaves_out_columns_before_it_cuts_one(width: int) -> None:
    lines = shown(status(models=[model("org/assistant", status="ready", running=2)]), width)
    tables = [line for line in lines if not line.startswith("BitingLip")]
    heads = [
        line.split() for line in tables if line.split()[:1] in (["DEVICE"], ["MODEL"], ["WORKER"])
    ]
    assert len(heads) == 3
    columns = {column for head in heads for column in head}
    assert columns <= COLUMNS
    assert {"FREE", "TOTAL"} <= set(heads[0])
    assert {"STATUS", "RUNNING", "QUEUED"} <= set(heads[1])
    assert {"STATE", "MEMORY"} <= set(heads[2])
    assert not [line for line in tables if "\N{HORIZONTAL ELLIPSIS}" in line]


def test_memory_of_other_gateways_is_told_and_is_none_of_other_programs() -> None:
    shared = {**DEVICE, "foreign_bytes": 0, "elsewhere_bytes": 20_000_000_000}
    lines = shown({**status(), "devices": [shared]})
    assert any("0: other gateways have reserved 20.0 GB of it" in line for line in lines)
    plain = shown({**status(), "devices": [{**DEVICE, "foreign_bytes": 20_000_000_000}]})
    assert [each for each in lines if "█" in each] == [each for each in plain if "█" in each]
