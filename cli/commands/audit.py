"""Implements ``bitinglip audit``: what was done, by whom, and whether that log is whole."""

import json
from typing import Annotated, Any

import typer

from cli import offline
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import moment, print_note, show_json, show_list, show_table

app = typer.Typer(no_args_is_help=True, help="See what was done by whom, and check that log.")

_COLUMNS = ("ENTRY", "TIME", "WHO", "FROM", "ACTION", "TARGET", "OUTCOME", "CHANGE")
_PAGE = 1000  #: the most that one request lists
_LONGEST = 60  #: characters of a value in the table


@app.command("list")
def list_entries(
    actor: Annotated[
        str | None,
        typer.Option(help="Only entries of this actor: a key's id or name, cli or server."),
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(help="Only entries of this action, as key.create, or key for all about keys."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Only entries about this target: a key's id or a model.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TIME", help="Only entries from this time on, as 2030-01-31."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TIME", help="Only entries before this time, as 2030-01-31T12:00Z."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of entries, the newest ones.")] = 100,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what was done, by whom, when and from where; the newest first."""
    asked = {"actor": actor, "action": action, "target": target, "from": since, "to": until}
    wanted: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    place = CliContext.of(home, config)
    rows: list[dict[str, Any]] = []
    if server := place.server():
        total = 1
        while len(rows) < min(limit, total):
            part = min(_PAGE, limit - len(rows))
            page = server.get("/api/v1/audit", **wanted, limit=part, offset=len(rows))
            rows, total = rows + page["data"], page["total"] if page["data"] else 0
    else:
        rows, total = offline.audit_entries(place, wanted, limit)
    show_list(rows, _show_entries, as_json=as_json, empty="There are no such entries.")
    if len(rows) < total and not as_json:
        print_note(f"These are the newest {len(rows)} of {total}; --limit shows more.")


@app.command()
def verify(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """Check that no entry was changed, removed or forged."""
    place = CliContext.of(home, config)
    if server := place.server():
        found = server.get_patiently("/api/v1/audit/verify")
    else:
        found = offline.verify_audit(place)
    if as_json:
        show_json(found)
    if not found["valid"]:
        raise Failure(
            f"the audit log is not whole: entry {found['first_bad']} was changed, removed or "
            "forged, secret.key is another one, or the database is an older copy; compare with a "
            "backup"
        )
    if not as_json:
        print_note(f"The audit log is whole: {found['rows']} entries.")


def _show_entries(rows: list[dict[str, Any]]) -> None:
    show_table(_COLUMNS, [_row(row) for row in rows], right="ENTRY", below="FROM CHANGE")


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    name = entry["actor_name"]
    return (
        entry["entry"],
        moment(str(entry["at"])),
        f"{entry['actor']} ({name})" if name else entry["actor"],
        entry["address"],
        entry["action"],
        entry["target"],
        entry["outcome"],
        _change(entry["before"], entry["after"]),
    )


def _change(before: Any, after: Any) -> str:
    """Say in words which fields changed."""
    old = before if isinstance(before, dict) else {}
    new = after if isinstance(after, dict) else {}
    parts = []
    for name in {**old, **new}:
        if name not in new:
            parts.append(f"{name} was {_short(old[name])}")
        elif name in old:
            parts.append(f"{name} {_short(old[name])} -> {_short(new[name])}")
        else:
            parts.append(f"{name} {_short(new[name])}")
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
