"""The gateway's memory is bounded: large requests leave nothing behind, and wait within a bound."""

import asyncio
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.support.server import Server, running_server
from tests.support.wait import eventually

GENERATE = "/api/v1/inference/text-generation"
MB = 2**20
WORD = "\N{GRINNING FACE}" + "x" * (4 * MB)  # 4 MB as JSON, 16 MB as Python keeps it
WORDS = WORD[:1] + "x " * (2 * MB)  # the same, and longer than any context


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("bounds") / "home"
    settings = ("demo=never", "queue.max_input_bytes=100000000")
    fake = "{tokens_per_second: 2, batch_size: 1}"
    slow = f"models.slow={{engine: fake, fake: {fake}}}"
    quick = "models.quick={engine: fake}"
    with running_server(
        home, *(part for each in (*settings, slow, quick) for part in ("--set", each))
    ) as server:
        yield server


def resident(server: Server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def test_memory_of_large_requests_of_all_sizes_is_given_back(server: Server) -> None:
    """Blocks of many sizes leave holes in an allocator's heaps; the first test, so that none do."""
    before = resident(server)
    chance = random.Random(1)
    prompts = [
        chance.choice("x\u00e9\N{GRINNING FACE}") * int(10 ** chance.uniform(4, 6.3))
        for _ in range(80)
    ]

    def status(prompt: str) -> int:
        body = {"model": "quick", "prompt": prompt, "max_tokens": 1}
        with server.client() as client:
            return client.post(GENERATE, json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(status, prompts))
    assert statuses <= {200, 400, 503}
    eventually(lambda: resident(server) - before < 90 * MB)


@pytest.mark.parametrize(("prompt", "status"), [(WORD, 200), (WORDS, 400)])
def test_ended_requests_leave_no_input_behind(server: Server, prompt: str, status: int) -> None:
    body = {"model": "quick", "prompt": prompt, "max_tokens": 1}
    with server.client() as client:
        for _ in range(4):  # recent results, and the allocator's own reserve
            assert client.post(GENERATE, json=body).status_code == status
        before = resident(server)
        for _ in range(12):
            assert client.post(GENERATE, json=body).status_code == status
    assert resident(server) - before < 100 * MB  # 192 MB if ended jobs kept their prompts


def wait_until_idle(server: Server) -> None:
    """Wait until the jobs of earlier requests have ended and a large request is taken again."""
    body = {"model": "quick", "prompt": WORD, "max_tokens": 1}
    # A cancelled request gives its bytes back at the model's next step, half of a second here.
    eventually(server.idle)
    with server.client() as client:
        eventually(lambda: client.post(GENERATE, json=body).status_code == 200)


def test_waiting_requests_of_a_key_hold_half_of_the_bound(server: Server) -> None:
    body = {"model": "slow", "prompt": WORD, "max_tokens": 1000}

    async def test() -> None:
        async with server.async_client() as client:
            posts = [asyncio.create_task(client.post(GENERATE, json=body)) for _ in range(6)]
            refused = []
            for _ in range(4):
                done, waiting = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
                refused += [post.result() for post in done]
                posts = list(waiting)
                if len(refused) >= 4:
                    break
            # 16 MB each, where the bound is 50 MB: the third is over it. The others take minutes.
            assert len(waiting) == 2
            assert {answer.status_code for answer in refused} == {503}
            assert {answer.json()["error"]["code"] for answer in refused} == {"QUEUE_FULL"}
            assert all("retry-after" in answer.headers for answer in refused)
            for post in waiting:
                post.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(test())
    wait_until_idle(server)


def test_bodies_that_arrive_hold_half_of_the_bound(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST {GENERATE} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: {server.headers['Authorization']}\r\nContent-Length: {10 * MB}\r\n\r\n"
    ).encode()
    before = resident(server)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(12)
        ]
        for each in sockets:
            each.sendall(head)
            with suppress(OSError):  # refused while it is sent
                each.sendall(b" " * (10 * MB - 1))
            each.setblocking(False)
        said: dict[socket.socket, bytes] = dict.fromkeys(sockets, b"")

        def refused() -> int:
            """Count the connections that were told so; a reset may have overtaken the words."""
            for each in sockets:
                with suppress(BlockingIOError):
                    try:
                        said[each] += each.recv(65536)
                    except ConnectionError:
                        said[each] += b"QUEUE_FULL"
            return sum(b"QUEUE_FULL" in answer for answer in said.values())

        eventually(lambda: refused() >= 7)
        assert refused() <= 8  # 10 MB each, where the bound is 50 MB
        assert resident(server) - before < 90 * MB
        with server.client() as client:  # what is small goes on
            assert client.post(GENERATE, json={"model": "quick", "prompt": "a"}).status_code == 200
    wait_until_idle(server)
