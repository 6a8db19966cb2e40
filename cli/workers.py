"""``bitinglip workers``: the processes that run the models."""

from typing import Annotated, Any

import typer

from cli.options import ConfigOption, HomeOption, JsonOption
from cli.output import ago, note, show_list, show_table, size, waiting
from cli.place import Place

app = typer.Typer(no_args_is_help=True, help="See, restart and stop the worker processes.")

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A worker's id, as in `workers list`.")
]
COLUMNS = ("WORKER", "MODEL", "STATE", "PID", "DEVICES", "MEMORY", "BUSY", "RESTARTS", "AGE")
NUMBERS = "PID MEMORY BUSY RESTARTS AGE"


@app.command("list")
def list_workers(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """All worker processes; the one without a model is the spare."""
    rows = Place.of(home, config).need_server().list("/api/v1/workers")
    empty = "No workers run; one starts when its model is asked for."
    show_list(rows, show_workers, as_json=as_json, empty=empty)


@app.command()
def restart(worker_id: IdArgument, home: HomeOption = None, config: ConfigOption = None) -> None:
    """Replace a worker by a fresh one."""
    from cli.client import path_of

    server = Place.of(home, config).need_server()
    with waiting(f"restarting {worker_id}"):
        server.post(path_of("workers", worker_id, "restart"), patience=None)
    note(f"{worker_id} is being restarted.")


@app.command()
def stop(worker_id: IdArgument, home: HomeOption = None, config: ConfigOption = None) -> None:
    """Stop a worker until its model is asked for again; a busy one is refused."""
    from cli.client import path_of

    server = Place.of(home, config).need_server()
    with waiting(f"stopping {worker_id}"):
        server.delete(path_of("workers", worker_id))
    note(f"Stopped {worker_id}.")


def show_workers(rows: list[dict[str, Any]]) -> None:
    show_table(COLUMNS, [_row(row) for row in rows], right=NUMBERS)
    for row in rows:
        if row["cause"]:
            note(f"{row['id']}: {row['cause']}")


def _row(worker: dict[str, Any]) -> tuple[Any, ...]:
    return (
        worker["id"],
        worker["model"],
        worker["state"],
        worker["pid"],
        worker["devices"],
        size(worker["memory_bytes"]),
        worker["in_flight"],
        worker["restarts"],
        ago(worker["started_at"]),
    )
