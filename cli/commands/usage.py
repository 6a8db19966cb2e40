"""Implements ``bitinglip usage``: what each key used."""

import csv
import sys
from typing import Annotated, Any

import typer

from cli import offline
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import show_list, show_table

_COLUMNS = {
    "day": "DAY",
    "month": "MONTH",
    "key_id": "KEY",
    "key_name": "NAME",
    "model": "MODEL",
    "requests": "REQUESTS",
    "prompt_tokens": "PROMPT",
    "completion_tokens": "COMPLETION",
    "megapixels": "MEGAPIXELS",
    "audio_seconds": "AUDIO-S",
    "gpu_seconds": "GPU-S",
}
_NUMBERS = " ".join(list(_COLUMNS.values())[5:])


def usage(
    key: Annotated[str | None, typer.Option(help="Only this key, by its id.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", help="The first day (UTC), as 2026-11-01.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="The last day (UTC), as 2026-11-30.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Grouping: some of day, month, key and model, by commas.")
    ] = "day,key,model",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what each key used: requests, tokens, megapixels, seconds of audio and of GPUs."""
    if as_csv and as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    asked = {"key_id": key, "model": model, "from": first, "to": last, "group_by": by}
    query = {name: value for name, value in asked.items() if value is not None}
    place = CliContext.of(home, config)
    server = place.server()
    rows = server.list("/api/v1/usage", **query) if server else offline.usage(place, query)
    if as_csv:
        _print_csv(rows, by)
    else:
        show_list(rows, _show, as_json=as_json, empty="Nothing was used in that time.")


def _show(rows: list[dict[str, Any]]) -> None:
    names = [name for name in _COLUMNS if name in rows[0]]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    show_table(
        [_COLUMNS[name] for name in names], cells, right=_NUMBERS, below="MEGAPIXELS AUDIO-S GPU-S"
    )


def _cell(value: Any) -> Any:
    return f"{value:,.2f}" if isinstance(value, float) else value


def _print_csv(rows: list[dict[str, Any]], by: str) -> None:
    """Print all columns that a row has; their names also where there is no row."""
    groups = {"key": ["key_id", "key_name"]}
    wanted = [column for name in by.split(",") for column in groups.get(name, [name])]
    names = [name for name in _COLUMNS if name in wanted or name not in _GROUPED]
    try:
        writer = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    except csv.Error as error:
        raise Failure(f"the rows cannot be written as CSV: {error}") from error


_GROUPED = ("day", "month", "key_id", "key_name", "model")
