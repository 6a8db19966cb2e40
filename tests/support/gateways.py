"""Two servers over one PostgreSQL database, and a client that takes turns between them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.server import Server, await_ready, start_server
from tests.support.wait import eventually

#: short, so that a death is seen soon; a busy machine keeps it
SHORT = ("--set", "gateways.heartbeat=0.2", "--set", "gateways.lease=4")


@dataclass
class Pair:
    """Holds two servers, and what each is started with."""

    args: tuple[str, ...]
    servers: list[Server] = field(default_factory=list)

    def start(self, index: int) -> Server:
        """Start a server, again where it ran before."""
        home = self.servers[index].home
        self.servers[index] = again = start_server(home, self.args)
        await_ready(again)
        return again


@contextmanager
def running_pair(folder: Path, url: str, *args: str) -> Iterator[Pair]:
    """Start two servers that share a database; the second takes over the first one's secret."""
    common = ("--set", f"database.url={url}", "--set", "gateways.shared=true")
    (folder / "common").mkdir()
    own = (*common, "--set", f"gateways.folder={folder / 'common'}", *SHORT, *args)
    first = start_server(folder / "one", own)
    pair = Pair(own, [first])
    try:
        await_ready(first)
        second = folder / "two"
        second.mkdir()
        # So that the tests have a key for it: a second server makes no key of its own.
        (second / "admin.key").write_bytes((first.home / "admin.key").read_bytes())
        (second / "admin.key").chmod(0o600)
        secret = ("--set", f"gateways.secret_file={first.home / 'secret.key'}")
        pair.servers.append(start_server(second, (*own, *secret)))
        await_ready(pair.servers[1])
        yield pair
    finally:
        for server in pair.servers:
            server.stop()


class Balancer:
    """Sends requests to servers in turn, those that say they are ready, until it is closed."""

    def __init__(self, addresses: dict[int, str], key: str) -> None:
        """``addresses``: of the servers that there are, which the test changes."""
        self.statuses: list[int] = []
        self.faults: list[str] = []
        self._addresses = addresses
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(2)]

    def __enter__(self) -> "Balancer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait until so many further requests were answered."""
        until = len(self.statuses) + count
        eventually(lambda: len(self.statuses) >= until or self.faults)

    def _run(self, number: int) -> None:
        body = {"model": "demo-echo", "prompt": "some words", "max_tokens": 5}
        with httpx.Client(timeout=60, headers=self._headers) as client:
            turn = number
            while not self._ended.is_set():
                turn += 1
                url = self._addresses.get(turn % 2)
                if url is None or not self._ready(client, url):
                    continue
                try:
                    answer = client.post(f"{url}/api/v1/inference/text-generation", json=body)
                except httpx.TransportError as error:
                    self.faults.append(repr(error))
                else:
                    self.statuses.append(answer.status_code)

    @staticmethod
    def _ready(client: httpx.Client, url: str) -> bool:
        with suppress(httpx.TransportError):
            return client.get(f"{url}/readyz").status_code == 200
        return False


def statuses(clients: Sequence[httpx.Client], path: str) -> list[str]:
    """Return what each server says of the state of a task or a batch."""
    return [client.get(path).json()["status"] for client in clients]
