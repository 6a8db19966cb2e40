from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer, programs, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; ``make`` gives each test a database of its own."""
    if (bin := programs()) is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    with running_postgres(bin) as server:
        yield server
