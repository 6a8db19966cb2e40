"""``bitinglip db`` brings the database to today's schema, and moves it to another server."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.backup import backup
from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption
from cli.show.output import print_note

if TYPE_CHECKING:
    from bitinglip.settings.database import Database

app = typer.Typer(no_args_is_help=True, help="Migrate, copy and back up the database.")
app.command("backup")(backup)
_FILE = "sqlite"


@app.command()
def migrate(home: HomeOption = None, config: ConfigOption = None) -> None:
    """Bring the database to the schema of this version, as the next start would.

    A copy of an SQLite file is made before. The server must not run.
    """
    from bitinglip.db.migrations import HEAD
    from bitinglip.home import HomeLock

    place = CliContext.of(home, config)
    settings = place.settings().database
    place.home.create()
    with HomeLock(place.home):
        if settings.url is None:
            from bitinglip.db.files import prepare

            before = prepare(place.home.database)
        else:
            from bitinglip.db import postgres

            before = postgres.migrate(postgres.address(settings.url))
    name = _name(place, settings)
    if before is None:
        print_note(f"Made the tables of {name}: schema {HEAD}.")
    elif before == HEAD:
        print_note(f"{name} has the schema {HEAD} already.")
    else:
        print_note(f"Migrated {name} from schema {before} to {HEAD}.")


@app.command()
def copy(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="postgresql+psycopg://user@host/database, or sqlite for the file in the home. "
            "The password comes from PGPASSWORD or ~/.pgpass.",
        ),
    ],
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy the database of this home into PostgreSQL, or from PostgreSQL back into SQLite.

    The server must not run. The target must be empty; the source stays as it is.

    Afterwards set database.url to the target (null for sqlite).
    """
    from bitinglip.home import HomeLock

    place = CliContext.of(home, config)
    settings = place.settings().database
    place.home.create()
    with HomeLock(place.home):
        to_file = target == _FILE
        counts = _to_file(place, settings) if to_file else _to_server(place, settings, target)
    for name, count in counts.items():
        print_note(f"{name:<16} {count:>10,}")
    url = "null" if target == _FILE else target
    print_note(f"Copied {sum(counts.values()):,} rows. Now set database.url: {url}")


def _to_file(place: CliContext, settings: "Database") -> dict[str, int]:
    from bitinglip.db import copying

    path = place.home.database
    if settings.url is None:
        raise Failure("database.url is null: the database is in SQLite already")
    if os.path.lexists(path):
        raise Failure(f"{path} exists already; move it away first")
    return copying.to_file(settings, path)


def _to_server(place: CliContext, settings: "Database", url: str) -> dict[str, int]:
    from pydantic import ValidationError

    from bitinglip.db import copying
    from bitinglip.settings.database import Database, without_password

    if without_password(url) != url:
        raise Failure(
            "the arguments of a process can be read by every user of this machine; leave the "
            "password out and put it into PGPASSWORD or ~/.pgpass"
        )
    try:
        target = Database(url=url)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ").partition("; null")[0]
        raise Failure(f"TARGET {problem}") from error
    if settings.url is not None:
        raise Failure(
            "database.url names PostgreSQL already, so the SQLite file may be old; set it to null "
            "to copy that file"
        )
    if not place.home.database.is_file():
        raise Failure(
            f"there is no database at {place.home.database} to be copied; a new home needs none: "
            "set database.url, and the first start makes the tables"
        )
    return copying.to_postgres(place.home.database, target)


def _name(place: CliContext, settings: "Database") -> str:
    from bitinglip.settings.database import without_password

    return str(place.home.database) if settings.url is None else without_password(settings.url)
