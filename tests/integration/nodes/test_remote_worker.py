"""Tests that the gateway bears a worker on a node whose frames come in any order."""

import asyncio
import contextlib
import fcntl
import os
import sys
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.integration.nodes.test_hosted import SECONDS, linked
from tests.support.wait import until
from workers.folders import WorkFolders
from workers.framing import FrameReader, encode_commands, encode_frame
from workers.nodes.files import MOST_FILE_BYTES
from workers.nodes.link import Link, LinkLost
from workers.nodes.messages import (
    File,
    Kind,
    Launched,
    OpenFiles,
    OpenWorker,
    ProcessEnd,
    ProcessState,
    Stored,
)
from workers.nodes.models import sender
from workers.nodes.models.source import ModelSource
from workers.nodes.remote_worker import RemoteWorker
from workers.protocol import (
    Cancel,
    Cancelled,
    Command,
    CopyProgress,
    Event,
    Failed,
    ImageJob,
    Load,
    LoadFailed,
    Sampling,
    SpeechJob,
    TextJob,
    TranscriptionJob,
)

SPEECH = SpeechJob(id="s", text="some words", folder="", seed=1)


def image_job(name: str, count: int = 1) -> ImageJob:
    seeds = tuple(range(count))
    return ImageJob(id=name, prompt="a fox", folder="", width=64, height=32, steps=1, seeds=seeds)


class StandInNode:
    """Stands in for a node; the test has the other end of its connection, and of one for files, if
    it gives one."""

    name, gateway = "n1", "g"

    def __init__(self, link: Link) -> None:
        self._link = link
        self.files: Link | None = None

    async def open_worker(self, spec: OpenWorker) -> Link:
        del spec
        return self._link

    async def open_files(self, opened: OpenFiles) -> Link:
        if self.files is None:
            raise LinkLost(f"nothing is copied for {opened.token}")
        files, self.files = self.files, None
        return files

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
        worker.send([image_job("j", 2)])
        node.tell(Kind.FILE, File("j-0.png", 6))
        node.send(Kind.DATA, b"abc")
        node.tell(Kind.STATE, ProcessState(5, stopped=False))
        node.send(Kind.OUTPUT, b"a line\n")
        node.send(Kind.DATA, b"def")
        node.tell(Kind.FILE, File("j-1.png", 0))
        await until((worker.folder / "j-1.png").exists)
        assert (worker.folder / "j-0.png").read_bytes() == b"abcdef"
        assert worker.bytes_read() == 5
        worker.send([SPEECH])
        node.tell(Kind.FILE, File("s-0.wav", 6))
        node.send(Kind.DATA, b"abc")
        node.tell(Kind.END, ProcessEnd(code=13))
        await until(lambda: worker.reap() is not None)
        assert (worker.reap(), worker.end and worker.end.cause) == (13, None)
        await until(lambda: worker.folder and len(list(worker.folder.iterdir())) == 2)

    with_worker(tmp_path, test)


def test_long_command_is_sent_in_pieces_and_others_follow_it(tmp_path: Path) -> None:
    long = TextJob(id="l", prompt="word" * 2_000_000, sampling=Sampling(max_tokens=1))

    async def test(node: Link, worker: RemoteWorker) -> None:
        await until(lambda: worker.pid == 7)
        worker.send([long])
        worker.send([Cancel(id="l")])
        await asyncio.sleep(0.05)  # the node takes nothing yet, so a part of the frame has gone
        worker.kill()
        frames = [await node.receive() for _ in range(3)]
        assert frames == [
            (Kind.COMMANDS, encode_commands([long])),
            (Kind.KILL, b""),
            (Kind.COMMANDS, encode_commands([Cancel(id="l")])),
        ]

    with_worker(tmp_path, test)


def test_file_that_cannot_be_kept_here_does_not_end_its_worker(tmp_path: Path) -> None:
    async def test(node: Link, worker: RemoteWorker) -> None:
        assert worker.folder is not None
        worker.send([image_job("j")])
        (worker.folder / ".j-0.png").mkdir()  # as good as a full disk
        node.tell(Kind.FILE, File("j-0.png", 6))
        node.send(Kind.DATA, b"abc")
        node.send(Kind.DATA, b"def")
        node.tell(Kind.STATE, ProcessState(5, stopped=False))
        await until(lambda: worker.bytes_read() == 5)
        assert worker.reap() is None
        assert not (worker.folder / "j-0.png").exists()

    with_worker(tmp_path, test)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("other-0.png", 1),
        ("j-1.png", 1),
        ("j-0.webp", 1),
        ("j-0.png", (1 << 20) + 5 * 64 * 32 + 1),
        ("s-0.wav", 100 << 20),
        ("ended-0.png", 1),
        ("once-0.png", 1),
    ],
)
def test_file_that_no_running_job_makes_ends_the_worker_before_a_byte_is_kept(
    tmp_path: Path, name: str, size: int
) -> None:
    async def test(node: Link, worker: RemoteWorker) -> None:
        assert worker.folder is not None
        jobs: list[Command] = [image_job("j"), SPEECH, image_job("ended"), image_job("once")]
        worker.send(jobs)
        node.send(Kind.EVENTS, encode_frame([Cancelled(id="ended")]))
        node.tell(Kind.FILE, File("once-0.png", 1))
        node.send(Kind.DATA, b"a")
        node.tell(Kind.FILE, File(name, size))
        node.send(Kind.DATA, b"b")
        await until(lambda: worker.reap() is not None)
        assert worker.end is not None
        assert "malformed frame (a file is " in (worker.end.cause or "")
        assert [each.name for each in worker.folder.iterdir()] == ["once-0.png"]
        assert (worker.folder / "once-0.png").read_bytes() == b"a"

    with_worker(tmp_path, test)


def test_files_of_nodes_leave_a_part_of_the_disk_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.nodes.files._MOST_KEPT", 1 << 62)
    monkeypatch.setattr("workers.nodes.files._KEPT_PART", 1)  # as good as a full disk

    async def test(node: Link, worker: RemoteWorker) -> None:
        assert worker.folder is not None
        worker.send([image_job("j")])
        node.tell(Kind.FILE, File("j-0.png", 6))
        node.send(Kind.DATA, b"abc")
        node.send(Kind.DATA, b"def")
        node.tell(Kind.STATE, ProcessState(5, stopped=False))
        await until(lambda: worker.bytes_read() == 5)
        assert worker.reap() is None
        assert list(worker.folder.iterdir()) == []

    with_worker(tmp_path, test)


def test_job_whose_upload_no_node_takes_fails_by_name_and_those_beside_it_run(
    tmp_path: Path,
) -> None:
    (uploads := tmp_path / "uploads").mkdir()
    for name, size in [("large", MOST_FILE_BYTES + 1), ("small", 3)]:
        with (uploads / name).open("wb") as file:
            file.truncate(size)
    jobs = [
        TranscriptionJob(id=name, path=str(uploads / name), max_seconds=9.0)
        for name in ("large", "small", "gone")
    ]

    async def test(node: Link, worker: RemoteWorker) -> None:
        worker.send(jobs)
        kinds = [await node.receive() for _ in range(3)]
        assert [kind for kind, _ in kinds] == [Kind.FILE, Kind.DATA, Kind.COMMANDS]
        assert kinds[2][1] == encode_commands([jobs[1]])
        told = FrameReader().feed(os.read(worker.events_fd, 1 << 16))
        failed = {each.id: each for each in told if isinstance(each, Failed)}
        assert failed["large"].code == "PAYLOAD_TOO_LARGE"
        assert "at most 1024 MiB" in failed["large"].message
        assert failed["gone"].code == "INFERENCE_FAILED"

    with_worker(tmp_path, test)


def test_failure_told_here_waits_for_a_frame_of_events_that_is_half_passed_on(
    tmp_path: Path,
) -> None:
    many = [Cancelled(id=f"{n:064}", completion_tokens=0) for n in range(2000)]  # over a pipe's
    job = TranscriptionJob(id="gone", path=str(tmp_path / "uploads" / "gone"), max_seconds=9.0)

    async def test(node: Link, worker: RemoteWorker) -> None:
        node.send(Kind.EVENTS, encode_frame(many))
        await until(lambda: waiting(worker.events_fd) > 1 << 15)
        worker.send([job])
        await asyncio.sleep(0.1)  # for it to be refused meanwhile; too early is no fault
        reader, told = FrameReader(), list[Event]()
        while not any(isinstance(each, Failed) for each in told):
            with contextlib.suppress(BlockingIOError):
                told += reader.feed(os.read(worker.events_fd, 1 << 16))
            await asyncio.sleep(0)
        assert [each for each in told if isinstance(each, Cancelled)] == many

    with_worker(tmp_path, test)


def waiting(fd: int) -> int:
    """Return the bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("fails", [False, True])
def test_load_leaves_once_its_files_are_there_and_fails_where_they_cannot_be(
    tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_PAUSE_SECONDS", 0.01)
    models = tmp_path / "models"
    (models / "m").mkdir(parents=True)
    (models / "m/weights").write_bytes(b"0123456789")
    spec = Load(model="m", engine="fake", path=str(models / "m"), node="n1")

    async def test() -> None:
        async with (
            asyncio.timeout(SECONDS),
            linked() as (gateway, node),
            linked() as (sending, taking),
        ):
            place = StandInNode(gateway)
            place.files = None if fails else sending
            folders = WorkFolders(tmp_path / "work")
            source = ModelSource(models, "", lambda _: {}, dict)
            worker = RemoteWorker("w", lambda _: place, folders, tmp_path / "uploads", source)
            worker.watch(lambda: None)
            worker.lend(spec)
            worker.send([spec])
            node.tell(Kind.LAUNCHED, Launched(7))
            try:
                if fails:
                    assert await node.receive() == (Kind.KILL, b"")
                    _, failed = events(worker)
                    assert isinstance(failed, LoadFailed)
                    assert "could not be copied to the node n1" in failed.message
                    return
                kind, _ = await taking.receive()
                assert kind == Kind.TREES
                taking.tell(Kind.STORED, Stored(4))
                await until(lambda: worker.bytes_read() == 4)
                assert CopyProgress("n1", 4, 10) in events(worker)
                taking.send(Kind.KEPT)
                kind, sent = await node.receive()
                assert (kind, sent) == (Kind.COMMANDS, encode_commands([spec]))
                node.tell(Kind.STATE, ProcessState(5, stopped=False))
                await until(lambda: worker.bytes_read() == 9)
            finally:
                worker.close()

    asyncio.run(test())


def events(worker: RemoteWorker) -> list[Event]:
    """Return what the pool can read now."""
    return FrameReader().feed(os.read(worker.events_fd, 1 << 16))
