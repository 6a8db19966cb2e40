"""Implements ``bitinglip models fit``: whether a model fits, before anything is loaded."""

import shlex
from collections.abc import Iterator
from typing import Any

import typer

from cli import offline
from cli.context import CliContext
from cli.errors import Failure
from cli.show.output import clean, show_json, show_table, size

_PARTS = (
    ("weights", "weights_bytes"),
    ("attention cache", "cache_bytes"),
    ("activations", "activation_bytes"),
    ("libraries", "overhead_bytes"),
)
_SOURCES = {
    "measured": "The total was measured, and has a margin; its parts are estimated.",
    "estimated": "All are estimated; the total is measured once the model runs.",
}


def fit_model(place: CliContext, name: str, *, as_json: bool) -> None:
    """Show the answer; exit code 1 if the model does not fit."""
    from cli.client import path_of

    server = place.server()
    try:
        found = server.get(path_of("models", name, "fit")) if server else _offline(place, name)
    except Failure as error:
        if error.code not in ("", "INVALID_MODEL"):
            raise
        hint = "Of one that is not here, `bitinglip models pull REPO --dry-run` says if it fits."
        raise Failure(f"{str(error).rstrip('.')}. {hint}", code=error.code) from None
    if as_json:
        show_json(found)
    else:
        _show(found)
    if not found["fits"]:
        raise typer.Exit(1)


def _show(found: dict[str, Any]) -> None:
    typer.secho(clean(found["message"]), fg="green" if found["fits"] else "red", bold=True)
    if needs := found["needs"]:
        typer.echo()
        parts = [(part, size(needs[key])) for part, key in _PARTS if needs[key]]
        total = ("to be reserved", size(needs["total_bytes"]))
        show_table(("NEEDS", "BYTES"), [*parts, total], right="BYTES")
        typer.echo(_SOURCES[needs["source"]])
    typer.echo()
    idle = [
        (heading, key)
        for heading, key in (("UNUSED", "idle_bytes"), ("ELSEWHERE", "idle_elsewhere_bytes"))
        if any(each.get(key) for each in found["devices"])
    ]
    rows = [
        (
            *(each["id"], each["name"], size(each["memory_bytes"]), size(each["free_bytes"])),
            *(size(each[key]) for _, key in idle),
        )
        for each in found["devices"]
    ]
    headings = ("DEVICE", "NAME", "MEMORY", "FREE", *(heading for heading, _ in idle))
    show_table(headings, rows, right="MEMORY FREE UNUSED ELSEWHERE")
    if idle:
        typer.echo("Models that are unused may be unloaded for it: here, or of other gateways.")
    if found["ways_out"]:
        typer.echo("\nIt would fit with one of")
        for line in suggestions(found["ways_out"]):
            typer.echo(f"  {line}")


def suggestions(ways: list[dict[str, Any]]) -> Iterator[str]:
    """Write each way as options of ``bitinglip serve``, ready to be pasted, and
    what it comes to."""
    for way in ways:
        names, values = way["setting"], way["value"]
        pairs = zip(names, values, strict=True) if isinstance(names, list) else [(names, values)]
        options = " ".join(f"--set {shlex.quote(f'{name}={value}')}" for name, value in pairs)
        gone = list(way.get("evict", ()))
        if theirs := way.get("evict_elsewhere_bytes"):
            gone.append(f"{size(theirs)} of other gateways' unused models")
        after = f" after unloading {', '.join(gone)}" if gone else ""
        lacks = f"; {way['lacks']}" if way.get("lacks") else ""
        yield clean(f"{options}   ({size(way['needs_bytes'])} on {way['device']}{after}{lacks})")


def _offline(place: CliContext, name: str) -> dict[str, Any]:
    """Answer for an empty machine: no server runs, so nothing is loaded."""
    from bitinglip.scheduling.placement.fit import fit_info
    from cli.machine import machine

    manifest = offline.manifest(place.home, name)
    with machine(place) as fit:
        return fit_info(fit(manifest))
