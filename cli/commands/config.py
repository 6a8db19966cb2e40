"""``bitinglip config`` checks and shows the settings that a server would have."""

from typing import Any

import typer

from cli.context import CliContext
from cli.options import ConfigOption, HomeOption, JsonOption, SetOption
from cli.show.output import show_json

app = typer.Typer(no_args_is_help=True, help="Check and show the settings.")


@app.command()
def check(
    sets: SetOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Say what is wrong with the settings: every problem, with file, line and nearest valid key."""
    from bitinglip.settings_loader import check_start

    place = CliContext.of(home, config)
    check_start(place.settings(sets or ()))
    if as_json:
        show_json({"valid": True, "source": _source(place)})
        return
    typer.echo(f"The settings are valid ({_source(place)}).")


@app.command()
def show(
    as_json: JsonOption = False,
    sets: SetOption = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Print the settings in effect, as YAML: defaults, file, environment and --set together."""
    from bitinglip.settings import as_plain

    place = CliContext.of(home, config)
    values = as_plain(place.settings(sets or ()))
    if as_json:
        show_json(values)
    else:
        typer.echo(f"# {_source(place)}")
        typer.echo(_yaml(values), nl=False)


def _source(place: CliContext) -> str:
    from bitinglip.settings_loader import find_config

    file = find_config(place.config, place.home.root)
    return f"from {file}" if file else "no file; defaults, environment and flags"


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(values, sort_keys=False, default_flow_style=False))
