"""Makes, judges, backs up and migrates the file of the database before anything opens it.

A file that we cannot trust stops the start with one clear message. It is never replaced by an empty
one in its place: that would drop every key.
"""

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine, exc
from sqlalchemy.pool import NullPool

from bitinglip.db.migrations import HEAD, VERSIONS
from bitinglip.db.tables import Table

_HEADER = b"SQLite format 3\0"
#: quick_check reads the whole file, so only a file of this size is checked at start
_QUICK = 64 * 2**20
_MOST_COPIES = 3  #: of the database before a migration, the last ones
_INCREMENTAL = 2  #: what ``PRAGMA auto_vacuum`` says of a file that can shrink


class DatabaseError(Exception):
    """The database cannot be used; the message says in one line why, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # SQLite may quote whole statements


def prepare(path: Path) -> str | None:
    """Leave a sound database of today's schema at ``path``, or raise DatabaseError.

    Returns the schema version that it had; None if there was no database.
    """
    path = path.absolute()
    try:
        if not _exists(path):
            create(path)
            return None
        path.chmod(0o600)
        version = _schema_version(path)
        _migrate(path, version)
        return version
    except OSError as error:
        raise DatabaseError(f"{path}: {error.strerror}") from error
    except (sqlite3.OperationalError, exc.OperationalError) as error:
        raise DatabaseError(f"{path}: {getattr(error, 'orig', error)}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # The driver cannot even decode a message that quotes damaged text.
        raise _damaged(path, str(error)) from error


def _exists(path: Path) -> bool:
    """Tell whether there is a database; refuse a link in its place, or a log without its file."""
    names = [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")]
    there = [name for name in names if os.path.lexists(name)]
    for name in there:
        if not stat.S_ISREG(name.lstat().st_mode):
            raise DatabaseError(f"{name} is a link or no plain file; put the file itself there")
    if there and path not in there:
        raise DatabaseError(f"{path} is missing but {there[0].name} is there; restore the database")
    return bool(there)


def create(path: Path, fill: Callable[[Connection], None] | None = None) -> None:
    """Make a database beside its place, with the rows that ``fill`` adds, and move it there whole.

    So an empty file is never an interrupted first start, and always damage.
    """
    draft = _empty_file(path.with_name(path.name + ".new"))
    try:
        _fill(draft, fill)
        if fill is not None:
            _sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)  # of a copy that failed: it holds what the database does
    if fill is not None:
        _sync(path.parent)


def _fill(draft: Path, fill: Callable[[Connection], None] | None) -> None:
    url = URL.create("sqlite", database=str(draft))
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table
        connection.exec_driver_sql("BEGIN")  # else each statement is a transaction of its own
        Table.metadata.create_all(connection, checkfirst=False)
        connection.exec_driver_sql(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
            " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
        if fill is not None:
            fill(connection)


def _schema_version(path: Path) -> str:
    """Return the schema version of a sound database."""
    with path.open("rb") as file:
        if file.read(len(_HEADER)) != _HEADER:
            raise _damaged(path, "it does not begin like a database")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as connection:
        if path.stat().st_size <= _QUICK:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise _damaged(path, found.partition("\n")[0])
        version = _version(connection)
    if version is None:
        raise DatabaseError(f"{path} is not a database of BitingLip; move it away or restore yours")
    if version not in VERSIONS:
        raise DatabaseError(
            f"{path} was written by another version of BitingLip (schema {version}, this one knows "
            f"up to {HEAD}); install that version, or restore a backup made before it"
        )
    return version


def _version(connection: sqlite3.Connection) -> str | None:
    tables = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if connection.execute(tables).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _migrate(path: Path, version: str) -> None:
    if version == HEAD:
        return
    # alembic is slow to import and rarely needed.
    from bitinglip.db.migrations.upgrade import upgrade

    backup(path, path.with_name(f"{path.name}.before-{HEAD}"))
    upgrade(path)
    _let_shrink(path)
    for copy in sorted(path.parent.glob(f"{path.name}.before-*"))[:-_MOST_COPIES]:
        copy.unlink(missing_ok=True)


def _let_shrink(path: Path) -> None:
    """Let a database of an older version give its free pages back to the disk."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if connection.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")  # only a whole rewrite changes it


def backup(path: Path, target: Path) -> None:
    """Copy a database, also one in use: sound and whole, or not at all; replaces ``target``.

    Raises DatabaseError or OSError.
    """
    draft = _empty_file(target.with_name(target.name + ".new"))
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", (str(draft),))
        with closing(sqlite3.connect(f"{draft.as_uri()}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise _damaged(path, found.partition("\n")[0])
        _sync(draft)
        os.replace(draft, target)
        _sync(target.parent)
    except sqlite3.OperationalError as error:
        raise DatabaseError(f"{path} cannot be copied to {target}: {error}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    finally:
        draft.unlink(missing_ok=True)


def row_counts(path: Path) -> dict[str, int]:
    """Return how many rows each table of a database file has, by the table's name."""
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute(tables) if name in Table.metadata.tables]
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            for name in sorted(names)
        }


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _empty_file(path: Path) -> Path:
    """Make an empty file for the owner only, in place of what an interrupted attempt left."""
    for end in ("", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    return path


def _damaged(path: Path, why: str) -> DatabaseError:
    return DatabaseError(
        f"{path} is damaged ({why}); restore a backup (see docs/backups.md), or move it away to "
        "start without any keys"
    )
