"""Counts of connections: which closes for which, and by which address one is counted."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bitinglip.http.capacity import Capacity, capacity
from bitinglip.http.connections import Connection, Connections, Times, address_key
from bitinglip.settings import Server

CAPACITY = Capacity(total=8, per_address=3, per_key=4, spare=2, backlog=8)


def with_books(act: Callable[[Connections], Awaitable[None]]) -> None:
    async def run() -> None:
        await act(Connections(CAPACITY, Times(tick=3600)))

    asyncio.run(run())


def admitted(books: Connections, host: str | None) -> Connection:
    connection = books.admit(host)
    assert connection is not None
    return connection


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8::1", "2306139568115548160"),
        ("2001:db8::ffff:1", "2306139568115548160"),  # a network of one customer
        ("2001:db8:0:1::1", "2306139568115548161"),
        ("fe80::1%eth0", "18338657682652659712"),
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        (None, None),
    ],
)
def test_address_counts_by_network_and_not_on_this_machine(
    host: str | None, key: str | None
) -> None:
    assert address_key(host) == key


def test_address_above_its_cap_closes_its_own_oldest_idle_connection() -> None:
    async def act(books: Connections) -> None:
        other = admitted(books, "198.51.100.1")
        first = admitted(books, "203.0.113.7")
        books.busy(first)
        second, third = admitted(books, "203.0.113.7"), admitted(books, "203.0.113.7")
        fourth = admitted(books, "203.0.113.7")
        assert not fourth.guest
        assert books.open == 4
        assert books.refused == {"idle": 1}
        for connection in (third, fourth):
            books.busy(connection)
        guest = admitted(books, "203.0.113.7")
        assert guest.guest
        assert not admitted(books, "192.0.2.1").guest  # others are not kept out
        assert other.shelf is not None
        books.remove(second)  # closed already; again is no harm
        assert books.open == 6

    with_books(act)


def test_address_of_this_machine_has_the_whole_cap() -> None:
    async def act(books: Connections) -> None:
        for _ in range(CAPACITY.total):
            connection = admitted(books, "127.0.0.1")
            books.busy(connection)
            assert not connection.guest
        for _ in range(CAPACITY.spare):
            guest = admitted(books, "::1")
            assert guest.guest
            books.busy(guest)
        assert books.admit("127.0.0.1") is None
        assert not admitted(books, None).guest  # the operator's
        assert books.refused == {"connections": 3}

    with_books(act)


def test_connections_that_are_gone_leave_nothing_behind() -> None:
    async def act(books: Connections) -> None:
        all_of_them = [admitted(books, f"203.0.113.{n % 4}") for n in range(8)]
        books.busy(all_of_them[0])
        books.rest(all_of_them[0], 5)
        for connection in all_of_them:
            books.remove(connection)
        assert books.states() == {"busy": 0, "idle": 0}

    with_books(act)


def test_pause_of_the_whole_process_does_not_count_against_clients() -> None:
    async def act(books: Connections) -> None:
        connection = admitted(books, None)
        due = connection.deadline
        books.tick(books.now + 3600 + 36)  # 36 s late
        assert connection.deadline == pytest.approx(due + 36)

    with_books(act)


@pytest.mark.parametrize("descriptors", [16, 64, 256, 1024, 4096, 1 << 20])
def test_capacity_leaves_descriptors_for_everything_else(descriptors: int) -> None:
    found = capacity(Server(), descriptors)
    assert found.total + found.spare + min(512, descriptors // 2) <= descriptors
    assert 1 <= found.per_address <= found.total
    assert 1 <= found.per_key <= found.total
    assert found.backlog >= 8


def test_capacity_follows_the_settings_where_descriptors_allow() -> None:
    server = Server(
        max_connections=100, max_connections_per_address=1000, max_requests_per_key=1000
    )
    found = capacity(server, 1 << 20)
    assert (found.total, found.per_address, found.per_key) == (100, 100, 1000)
    assert capacity(server, 64).total < 64
