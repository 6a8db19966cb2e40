"""Implements ``bitinglip workers``: the processes that run the models."""

import time
from typing import Annotated, Any

import typer

from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import (
    ago,
    clean,
    print_done,
    print_note,
    show_json,
    show_list,
    show_pairs,
    show_table,
    size,
    waiting,
)

app = typer.Typer(no_args_is_help=True, help="List, restart and stop the worker processes.")

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A worker's id, as in `workers list`.")
]
_POLL_SECONDS = 0.2
COLUMNS = ("WORKER", "MODEL", "STATE", "PID", "DEVICES", "MEMORY", "BUSY", "RESTARTS", "AGE")
NUMBERS = "PID MEMORY BUSY RESTARTS AGE"


@app.command("list")
def list_workers(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """List all worker processes; the one without a model is the spare."""
    rows = CliContext.of(home, config).need_server().list("/api/v1/workers")
    empty = "No workers run; one starts when its model is asked for."
    show_list(rows, show_workers, as_json=as_json, empty=empty)


@app.command()
def restart(
    worker_id: IdArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Replace a worker by a fresh one."""
    from cli.client import path_of

    server = CliContext.of(home, config).need_server()
    with waiting(f"restarting {worker_id}"):
        server.post(path_of("workers", worker_id, "restart"), patience=None)
    said = f"{worker_id} is being restarted."
    print_done(said, {"id": worker_id, "state": "restarting"}, as_json=as_json)


@app.command()
def drain(
    worker_id: IdArgument,
    wait: Annotated[bool, typer.Option(help="Wait until the worker has ended.")] = True,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a worker nothing new, and stop it when it has finished what it runs."""
    from cli.client import path_of

    server = CliContext.of(home, config).need_server()
    server.post(path_of("workers", worker_id, "drain"))
    with waiting(f"draining {worker_id}"):
        while wait and any(row["id"] == worker_id for row in server.list("/api/v1/workers")):
            time.sleep(_POLL_SECONDS)
    said = f"{worker_id} is drained." if wait else f"{worker_id} is being drained."
    state = "stopped" if wait else "draining"
    print_done(said, {"id": worker_id, "state": state}, as_json=as_json)


@app.command()
def show(
    worker_id: IdArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one worker, and the last lines that it wrote."""
    rows = CliContext.of(home, config).need_server().list("/api/v1/workers")
    found = next((row for row in rows if row["id"] == worker_id), None)
    if found is None:
        known = ", ".join(row["id"] for row in rows) or "none runs"
        raise Failure(f"there is no worker {worker_id!r}; there are: {known}")
    if as_json:
        show_json(found)
        return
    lines = found.pop("stderr", [])
    show_pairs({**found, "memory_bytes": size(found["memory_bytes"])})
    for line in lines:
        typer.secho(clean(f"  {line}"), dim=True)


@app.command()
def stop(
    worker_id: IdArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Stop a worker until its model is asked for again; a busy one is refused."""
    from cli.client import path_of

    server = CliContext.of(home, config).need_server()
    with waiting(f"stopping {worker_id}"):
        server.delete(path_of("workers", worker_id))
    print_done(f"Stopped {worker_id}.", {"id": worker_id, "state": "stopped"}, as_json=as_json)


def show_workers(rows: list[dict[str, Any]]) -> None:
    show_table(COLUMNS, [_row(row) for row in rows], right=NUMBERS, below="DEVICES RESTARTS")
    for row in rows:
        if row["cause"]:
            print_note(f"{row['id']}: {row['cause']}")


def show_nodes(nodes: list[dict[str, Any]]) -> None:
    """Show the machines of a cluster, and why some cannot be used."""
    rows = [
        (each["id"], each["state"], each["address"] or "-", each["devices"], each["workers"])
        for each in nodes
    ]
    show_table(
        ("NODE", "STATE", "ADDRESS", "DEVICES", "WORKERS"), rows, right="WORKERS", below="DEVICES"
    )
    for each in nodes:
        if each["reason"]:
            print_note(f"{each['id']}: {each['reason']}")


def _row(worker: dict[str, Any]) -> tuple[Any, ...]:
    return (
        worker["id"],
        worker["model"],
        ", ".join(filter(None, (worker["state"], worker.get("activity")))),
        worker["pid"],
        worker["devices"],
        size(worker["memory_bytes"]),
        worker["in_flight"],
        worker["restarts"],
        ago(worker["started_at"]),
    )
