"""Brings a database to a schema version, in one transaction: all of it or nothing."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.pool import NullPool

from bitinglip.db.migrations import FOLDER


def upgrade(database: Path, revision: str = "head") -> None:
    """Bring a file of SQLite to a schema version."""
    url = URL.create("sqlite", database=str(database))
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    # The driver would leave schema changes outside of transactions; so we begin them ourselves.
    event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    event.listen(engine, "begin", _begin)
    with engine.begin() as connection:
        upgrade_connection(connection, revision)


def upgrade_connection(connection: Connection, revision: str = "head") -> None:
    """Bring a database to a schema version in the transaction of a connection."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
