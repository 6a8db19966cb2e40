"""Prints what a person or a program reads: tables, JSON, sizes, times, a spinner.

Results go to stdout, everything about them to stderr. Text from elsewhere passes ``clean``.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.status import Status

# Terminal control: C0 but tab and line feed, DEL, C1, and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_WIDE = 10_000


def clean(text: str) -> str:
    """Remove all control characters that a terminal would obey."""
    return _CONTROL.sub("", text)


def survive_any_text() -> None:
    """Show characters that the terminal's encoding lacks as ``?``, not as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def console(stream: IO[str] | None = None) -> "Console":
    """Return a console that prints text as it is, and wraps lines on a terminal only."""
    from rich.console import Console

    out = stream or sys.stdout
    width = None if out.isatty() else _WIDE
    return Console(file=out, width=width, markup=False, highlight=False, emoji=False)


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def show_list(
    rows: list[dict[str, Any]],
    show: Callable[[list[dict[str, Any]]], None],
    *,
    as_json: bool,
    empty: str,
) -> None:
    """Print the rows of a ``list`` command: JSON, a table, or what to do if there are none."""
    if as_json:
        show_json(rows)
    elif rows:
        show(rows)
    else:
        print_note(empty)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: str = "", below: str = ""
) -> None:
    """Print a table.

    ``right`` names the columns of numbers, ``below`` those that go below their row where the
    terminal is narrow, with blanks between.
    """
    from cli.show.layout import lay_out

    cells = [[_cell(value) for value in row] for row in rows]
    width = console().width
    lines = lay_out(columns, cells, width, right=right.split(), below=below.split())
    for number, line in enumerate(lines):
        typer.secho(line, bold=number == 0 or None)


def show_pairs(pairs: Mapping[str, Any]) -> None:
    """Print names and values, one pair a line; unknown values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, "", [], {}):
            table.add_row(name, Text(_cell(value)))
    show(table)


def show(*parts: "RenderableType") -> None:
    """Print without the blanks that fill the last column."""
    screen = console()
    with screen.capture() as captured:
        for part in parts:
            screen.print(part)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        value = [f"{name} {each}" for name, each in value.items()]
    if isinstance(value, (list, tuple)):
        return clean(", ".join(str(item) for item in value)) or "-"
    return clean(str(value)).replace("\n", " ")


def print_note(text: str) -> None:
    """Print a remark to stderr, dim on a terminal."""
    typer.secho(clean(text), dim=True, err=True)


def print_done(text: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Say what a command has done: a remark to a person, or facts to a program."""
    if as_json:
        show_json(facts)
    else:
        print_note(text)


def size(count: int | None) -> str:
    """Format bytes in powers of ten (1.2 GB); ``-`` if unknown."""
    from model_store.sizes import size_text

    return "-" if count is None else size_text(count)


def amount(count: int | None) -> str:
    """Format a number of parameters (135M)."""
    if not count:
        return "-"
    value, units = float(count), ["", "k", "M", "B", "T"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f}{units[0]}" if value >= 99.95 or not units[0] else f"{value:.1f}{units[0]}"


def moment(text: str | None) -> str:
    """Format a time of the API in this machine's zone, to the minute."""
    if not text:
        return "-"
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return clean(text)


def ago(text: str | None) -> str:
    """Format how long ago a time of the API was, in the largest unit that fits."""
    if not text:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(seconds: float) -> str:
    """Format a span of time as a person would say it: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Waiting:
    """Shows the text of a spinner; without a terminal it prints nothing."""

    def __init__(self, status: "Status | None") -> None:
        self._status = status

    def say(self, text: str) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(clean(text), style="dim"))
            self._status.start()

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()


@contextmanager
def waiting(text: str = "") -> Iterator[Waiting]:
    """Show a spinner on stderr while the block runs, once it has a text."""
    status = console(sys.stderr).status("", spinner="dots") if sys.stderr.isatty() else None
    spinner = Waiting(status)
    try:
        if text:
            spinner.say(text)
        yield spinner
    finally:
        spinner.stop()
