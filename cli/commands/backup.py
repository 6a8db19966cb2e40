"""``bitinglip backup`` copies the database, whether a server runs or not."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import offline
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import print_note, show_json, size


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write the copy to.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy the database to an SQLite FILE, also while the server runs, and check the copy."""
    from bitinglip.db import files

    context = CliContext.of(home, config)
    place, settings = context.home, context.settings().database
    target = file.expanduser().absolute()
    if settings.url is None and not place.database.is_file():
        raise Failure(f"there is no database at {place.database}; the first start makes it")
    _check_target(target, place.database, force=force)
    if settings.url is None:
        files.backup(place.database, target)
    else:
        from bitinglip.db import copying

        copying.to_file(settings, target)
    if place.secret_key.exists():  # entering makes one where there is none
        offline.enter(place, "backup", str(target))
    counts = dict(files.row_counts(target))
    if as_json:
        show_json({"file": str(target), "bytes": target.stat().st_size, "rows": counts})
        return
    rows = ", ".join(f"{name} {count}" for name, count in counts.items())
    print_note(f"Copied the database to {target}: {size(target.stat().st_size)}, checked.")
    print_note(f"It holds these rows: {rows}.")
    print_note(
        f"Its keys work only together with {place.secret_key}, which is not in it: keep a copy of "
        "that file too, in another place. Models and made files are not in it either."
    )


def _check_target(target: Path, database: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise Failure(f"{target.parent} is not a folder")
    if target.is_dir():
        raise Failure(f"{target} is a folder; name a file in it")
    if target.exists() and database.exists() and target.samefile(database):
        raise Failure(f"{target} is the database itself")
    if os.path.lexists(target) and not force:
        raise Failure(f"{target} exists already; --force replaces it")
