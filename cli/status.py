"""``bitinglip status``: one look at the running server."""

from typing import Any

import typer

from cli.options import ConfigOption, HomeOption, JsonOption
from cli.output import clean, note, show_json, show_table
from cli.place import Place
from cli.workers import show_workers


def status(
    as_json: JsonOption = False, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """The running server: its health, models, queues and workers."""
    server = Place.of(home, config).need_server()
    health = server.health()
    found = {"url": server.url, "health": health, **server.get("/api/v1/cluster/status")}
    if as_json:
        show_json(found)
        return
    _show_summary(found)
    if models := found["models"]:
        typer.echo()
        show_table(
            ("MODEL", "STATUS", "QUEUED"),
            [(model["model_id"], model["status"], model["queued"]) for model in models],
            right="QUEUED",
        )
        for model in models:
            if model["cause"]:
                note(f"{model['model_id']}: {model['cause']}")
    if found["workers"]:
        typer.echo()
        show_workers(found["workers"])


def _show_summary(found: dict[str, Any]) -> None:
    health = found["health"]
    typer.echo(
        clean(
            f"BitingLip {health.get('version', '')} at {found['url']}: {found['status']}, "
            f"{health['status']}; {found['in_flight']} in flight, {found['queued']} queued"
        )
    )
    for name, check in health.get("checks", {}).items():
        if not check["ok"]:
            typer.secho(clean(f"  {name}: {check['detail']}"), fg="yellow")
