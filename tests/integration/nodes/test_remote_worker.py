"""Tests that the gateway bears a worker on a node whose frames come in any order."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.integration.nodes.test_hosted import SECONDS, linked
from tests.support.wait import until
from workers.folders import WorkFolders
from workers.nodes.link import Link
from workers.nodes.messages import File, Kind, Launched, OpenWorker, ProcessEnd, ProcessState
from workers.nodes.remote_worker import RemoteWorker
from workers.protocol import Load


class StandInNode:
    """Is reached by a connection whose other end the test has."""

    name, gateway = "n1", "g"

    def __init__(self, link: Link) -> None:
        self._link = link

    async def open_worker(self, spec: OpenWorker) -> Link:
        del spec
        return self._link

    def add(self, worker: RemoteWorker) -> None:
        pass

    def discard(self, worker: RemoteWorker) -> None:
        pass


def with_worker(folder: Path, test: Callable[[Link, RemoteWorker], Awaitable[None]]) -> None:
    """Run a test with the node's end of the connection of a worker that loads."""

    async def run() -> None:
        async with asyncio.timeout(SECONDS), linked() as (gateway, node):
            place = StandInNode(gateway)
            folders = WorkFolders(folder / "work")
            worker = RemoteWorker("w", lambda _: place, folders, folder / "uploads")
            worker.watch(lambda: None)
            worker.lend(Load(model="m", engine="fake", path="", node="n1"))
            node.tell(Kind.LAUNCHED, Launched(7))
            try:
                await test(node, worker)
            finally:
                worker.close()

    asyncio.run(run())


def test_file_of_a_worker_is_whole_though_other_frames_come_between_its_pieces(
    tmp_path: Path,
) -> None:
    async def test(node: Link, worker: RemoteWorker) -> None:
        assert worker.folder is not None
        node.tell(Kind.FILE, File("j-0.png", 6))
        node.send(Kind.DATA, b"abc")
        node.tell(Kind.STATE, ProcessState(5, stopped=False))
        node.send(Kind.OUTPUT, b"a line\n")
        node.send(Kind.DATA, b"def")
        node.tell(Kind.FILE, File("empty.png", 0))
        await until((worker.folder / "empty.png").exists)
        assert (worker.folder / "j-0.png").read_bytes() == b"abcdef"
        assert worker.bytes_read() == 5
        node.tell(Kind.FILE, File("half.png", 6))
        node.send(Kind.DATA, b"abc")
        node.tell(Kind.END, ProcessEnd(code=13))
        await until(lambda: worker.reap() is not None)
        assert (worker.reap(), worker.end and worker.end.cause) == (13, None)
        await until(lambda: worker.folder and len(list(worker.folder.iterdir())) == 2)

    with_worker(tmp_path, test)


def test_file_that_cannot_be_kept_here_does_not_end_its_worker(tmp_path: Path) -> None:
    async def test(node: Link, worker: RemoteWorker) -> None:
        assert worker.folder is not None
        (worker.folder / ".j-0.png").mkdir()  # as good as a full disk
        node.tell(Kind.FILE, File("j-0.png", 6))
        node.send(Kind.DATA, b"abc")
        node.send(Kind.DATA, b"def")
        node.tell(Kind.STATE, ProcessState(5, stopped=False))
        await until(lambda: worker.bytes_read() == 5)
        assert worker.reap() is None
        assert not (worker.folder / "j-0.png").exists()

    with_worker(tmp_path, test)
