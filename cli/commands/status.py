"""``bitinglip status`` shows the running server once."""

from typing import Any

import typer

from cli.commands.workers import show_nodes, show_workers
from cli.context import CliContext
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import clean, console, print_note, show, show_json
from cli.show.tables import devices_explained, model_table

_WIDEST = 140


def status(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """Show the running server: its health, models, queues and workers."""
    server = CliContext.of(home, config).need_server()
    health = server.health()
    found = {"url": server.url, "health": health, **server.get("/api/v1/cluster/status")}
    if as_json:
        show_json(found)
        return
    _show_summary(found)
    if devices := found.get("devices"):
        show("", *devices_explained(devices, min(console().width, _WIDEST)))
    if nodes := found.get("nodes"):
        show_nodes(nodes)
    if models := found["models"]:
        show("", *model_table(models, len(models), min(console().width, _WIDEST)))
        for model in models:
            if model["cause"]:
                print_note(f"{model['model_id']}: {model['cause']}")
    if found["workers"]:
        typer.echo()
        show_workers(found["workers"])


def _show_summary(found: dict[str, Any]) -> None:
    health = found["health"]
    load = f", load {found['load']:.0%}" if "load" in found else ""
    typer.echo(
        clean(
            f"BitingLip {health.get('version', '')} at {found['url']}: {found['status']}, "
            f"{health['status']}; {found['in_flight']} in flight, {found['queued']} queued{load}"
        )
    )
    for name, check in health.get("checks", {}).items():
        if not check["ok"]:
            typer.secho(clean(f"  {name}: {check['detail']}"), fg="yellow")
