"""``bitinglip doctor`` tells what is wrong with this machine, and what to do about it."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.checks.service import UNIT
from cli.context import CliContext
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import clean, show_json

if TYPE_CHECKING:
    from cli.checks.findings import Finding

_MARKS = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "error": ("FAIL", "red")}


def doctor(
    as_service: Annotated[
        bool, typer.Option("--as-service", help="Check what the server finds as a systemd service.")
    ] = False,
    unit: Annotated[str, typer.Option(help="Name of the systemd unit, with --as-service.")] = UNIT,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Check the machine, settings, models and what the settings name. Exits 1 if one is wrong."""
    from dataclasses import asdict

    from cli.checks.checks import every_finding, of_service

    place = CliContext.of(home, config)
    findings = []
    for finding in of_service(unit, place) if as_service else every_finding(place):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        show_json([asdict(finding) for finding in findings])
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def _show(finding: "Finding") -> None:
    mark, colour = _MARKS[finding.level]
    typer.secho(mark, fg=colour, nl=False)
    typer.echo(clean(f"  {finding.check:<13}{finding.detail}"))
    if finding.advice:
        typer.echo(clean(f"{'':19}-> {finding.advice}"))
