"""Implements ``bitinglip serve``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.options import ConfigOption, HomeOption, SetOption


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 8080 by default, 0 takes a free one.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Put the small demo models into the store.")
    ] = False,
    sets: SetOption = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Run the server in the foreground. Ctrl-C lets running requests end; a second one does not."""
    raise typer.Exit(_run(home, config, sets or [], host=host, port=port, demo=demo))


def _run(
    home: Path | None,
    config: Path | None,
    sets: list[str],
    *,
    host: str | None,
    port: int | None,
    demo: bool,
) -> int:
    from bitinglip.home import Home, resolve_home
    from bitinglip.settings_loader import load_settings

    root = resolve_home(home, os.environ)
    flags = {"server.host": host, "server.port": port}
    settings = load_settings(config=config, home=root, environ=os.environ, sets=sets, flags=flags)

    from bitinglip import server  # slow to import, so wrong settings are told before

    return server.serve(settings, Home(root), demo=demo)
