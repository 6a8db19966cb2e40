"""Tests how an agent bears workers that are broken, or too late, or want other files."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.support import node_workers
from tests.support.hostile_workers import entry
from tests.support.wait import until
from workers.exit_watch import has_ended
from workers.folders import WorkFolders
from workers.framing import BadFrame, FrameReader, encode_commands
from workers.launcher import SpawnedWorker, SpawnLauncher
from workers.nodes import hosted as hosted_workers
from workers.nodes.files import IncomingFiles, send_file
from workers.nodes.hosted import HostedWorker
from workers.nodes.link import Link, LinkLost
from workers.nodes.messages import CHUNK_BYTES, PROTOCOL, File, Kind, OpenWorker, ProcessEnd
from workers.nodes.spare import Spare
from workers.protocol import (
    Ends,
    Event,
    Failed,
    LoadFailed,
    Ready,
    Sampling,
    SpeechDone,
    SpeechJob,
    TextDelta,
    TextJob,
    TextLora,
)
from workers.protocol import Load as LoadCommand

LOAD = encode_commands([LoadCommand(model="m", engine="fake", path="")])
SECONDS = 20


class StandInAgent:
    """Starts processes that run an entry of a test; the first is the spare."""

    def __init__(self, folder: Path, *entries: str) -> None:
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        self.roots = (str(folder),)
        self.loads = 0
        self.hosted: HostedWorker | None = None
        self.fresh: list[bool] = []
        folders = WorkFolders(folder / "work")
        self._launchers = [SpawnLauncher(each, folders=folders) for each in entries]

    def start(self, spec: OpenWorker, *, fresh: bool) -> tuple[SpawnedWorker, bool]:
        self.fresh.append(fresh)
        launcher = self._launchers.pop(0)
        return launcher.launch(spec.name, (), spec.visible_devices), not fresh

    def short_of_ram(self) -> bool:
        return False

    def loaded(self) -> None:
        self.loads += 1


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Link]]:
    """Yield both ends of a connection."""
    left, right = socket.socketpair()
    links = [Link(*await asyncio.open_connection(sock=each)) for each in (left, right)]
    try:
        yield links[0], links[1]
    finally:
        for link in links:
            link.abort()


async def received(link: Link, files: IncomingFiles) -> str:
    """Take the frames of a file."""
    try:
        while (name := await files.take(*await link.receive())) is None:
            pass
    finally:
        files.close()
    return name


async def heard(gateway: Link) -> tuple[list[Event], ProcessEnd]:
    """Take what comes of a worker until its end."""
    reader, events = FrameReader(), list[Event]()
    while True:
        kind, payload = await gateway.receive()
        if kind == Kind.EVENTS:
            events += reader.feed(payload)
        elif kind == Kind.END:
            return events, msgspec.msgpack.decode(payload, type=ProcessEnd)


def with_hosted(
    folder: Path, test: Callable[[Link, StandInAgent], Awaitable[None]], *entries: str
) -> None:
    async def run() -> None:
        agent = StandInAgent(folder, *entries)
        opened = OpenWorker(
            protocol=PROTOCOL, gateway="g", node="n1", name="w", engine="text", visible_devices=""
        )
        async with asyncio.timeout(SECONDS), linked() as (gateway, link):
            hosted = agent.hosted = HostedWorker(link, agent, opened, 1, lambda _: None)
            running = asyncio.create_task(hosted.run())
            gateway.send(Kind.COMMANDS, LOAD)
            try:
                await test(gateway, agent)
            finally:
                gateway.abort()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_spare_whose_driver_has_started_is_replaced_before_the_gateway_hears_of_it(
    tmp_path: Path,
) -> None:
    async def test(gateway: Link, agent: StandInAgent) -> None:
        events: list[Event] = []
        reader = FrameReader()
        while not any(isinstance(each, Ready) for each in events):
            kind, payload = await gateway.receive()
            events += reader.feed(payload) if kind == Kind.EVENTS else []
        assert not any(isinstance(each, LoadFailed) for each in events)
        assert agent.fresh == [False, True]
        assert agent.loads == 1

    too_late = entry(node_workers.is_too_late)
    with_hosted(tmp_path, test, too_late, entry(node_workers.speaks))


def test_spare_of_a_node_is_given_once_and_never_a_dead_one() -> None:
    async def run() -> None:
        spare = Spare(SpawnLauncher(entry(node_workers.speaks)))
        assert spare.take() is None
        spare.warm()
        spare.warm()
        first = spare.take()
        assert first is not None
        assert spare.take() is None, "there was one"
        first.kill()
        await until(lambda: has_ended(first.pid))
        first.reap()
        first.close()
        before = {each.pid for each in psutil.Process().children()}
        spare.warm()
        (process,) = [each for each in psutil.Process().children() if each.pid not in before]
        process.kill()
        await until(lambda: has_ended(process.pid))
        assert spare.take() is None
        spare.warm()
        await spare.close()

    asyncio.run(run())


def test_worker_that_writes_nonsense_is_ended_on_its_node(tmp_path: Path) -> None:
    async def test(gateway: Link, _: StandInAgent) -> None:
        end = (await heard(gateway))[1]
        assert "malformed frame" in (end.cause or "")

    with_hosted(tmp_path, test, entry(node_workers.claims_too_much))


def test_worker_gets_no_file_of_others_sent_as_its_result(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 7)

    async def test(gateway: Link, _: StandInAgent) -> None:
        for name, text in (("a", "file"), ("b", str(secret))):
            job = SpeechJob(id=name, text=text, seed=1, folder="elsewhere", stream=False)
            gateway.send(Kind.COMMANDS, encode_commands([job]))
        files, ended, reader = list[bytes](), 0, FrameReader()
        while ended < 2:
            kind, payload = await gateway.receive()
            files += [payload] if kind == Kind.DATA else []
            if kind == Kind.EVENTS:
                ended += sum(isinstance(each, SpeechDone) for each in reader.feed(payload))
        assert files == [b"sound!!"], "the link is not followed"
        (folder,) = (tmp_path / "work").iterdir()
        await until(lambda: not list(folder.iterdir()))  # the worker runs on

    with_hosted(tmp_path, test, entry(node_workers.speaks))


def test_files_keep_their_names_and_sizes_or_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    whole.write_bytes(os.urandom(2 * CHUNK_BYTES + 1))
    taken = tmp_path / "taken"
    taken.mkdir()

    async def refused(*frames: tuple[Kind, bytes]) -> None:
        async with linked() as (gateway, agent):
            for frame in frames:
                agent.send(*frame)
            agent.close()
            with pytest.raises((BadFrame, LinkLost)):
                await received(gateway, IncomingFiles(taken))

    async def run() -> None:
        async with linked() as (gateway, agent):
            sending = asyncio.create_task(send_file(agent, whole))
            assert await received(gateway, IncomingFiles(taken, "1-")) == "whole.png"
            assert await sending
            assert not await send_file(agent, whole, 3), "it is of another size"
            (tmp_path / "link").symlink_to(whole)
            assert not await send_file(agent, tmp_path / "link")
        encode = msgspec.msgpack.encode
        for name in ("../up", "/etc/x", ".hidden", "", "a\nb", "n" * 300):
            await refused((Kind.FILE, encode(File(name, 1))), (Kind.DATA, b"x"))
        await refused((Kind.FILE, encode(File("a", 1))), (Kind.DATA, b"xx"))
        await refused((Kind.FILE, encode(File("a", 1 << 40))))
        await refused((Kind.FILE, encode(File("a", 2))), (Kind.DATA, b"x"))

    asyncio.run(run())
    assert (taken / "1-whole.png").read_bytes() == whole.read_bytes()
    assert [each.name for each in taken.iterdir()] == ["1-whole.png"], "nothing else is left"


def test_pictures_that_were_sent_go_with_their_job(tmp_path: Path) -> None:
    async def test(gateway: Link, agent: StandInAgent) -> None:
        gateway.tell(Kind.FILE, File("a.png", 3))
        gateway.send(Kind.DATA, b"abc")
        message = node_workers.message("/uploads/a.png")
        sampling = Sampling(max_tokens=1, seed=1)
        job = TextJob(id="j", messages=(message,), sampling=sampling, stream=False)
        gateway.send(Kind.COMMANDS, encode_commands([job]))
        reader, texts = FrameReader(), list[str]()
        while not texts:
            kind, payload = await gateway.receive()
            if kind == Kind.EVENTS:
                told = reader.feed(payload)
                texts += [each.text for each in told if isinstance(each, TextDelta)]
        assert texts == ["abc"], "it has read the file at its place on the node"
        await until(lambda: not list(agent.inputs.iterdir()))

    with_hosted(tmp_path, test, entry(node_workers.speaks))


def test_file_that_cannot_be_kept_on_a_node_fails_its_job_only(tmp_path: Path) -> None:
    async def test(gateway: Link, agent: StandInAgent) -> None:
        (agent.inputs / ".1-a.png").mkdir()  # as good as a full disk
        sampling, jobs = Sampling(max_tokens=1, seed=1), []
        for name in ("a", "b"):
            gateway.tell(Kind.FILE, File(f"{name}.png", 3))
            gateway.send(Kind.DATA, b"abc")
            messages = (node_workers.message(f"/uploads/{name}.png"),)
            jobs.append(TextJob(id=name, messages=messages, sampling=sampling, stream=False))
        gateway.send(Kind.COMMANDS, encode_commands(jobs))
        reader, ended = FrameReader(), dict[str, str]()
        while len(ended) < 2:
            kind, payload = await gateway.receive()
            for event in reader.feed(payload) if kind == Kind.EVENTS else ():
                if isinstance(event, Ends):
                    ended[event.id] = event.code if isinstance(event, Failed) else "done"
        assert ended == {"a": "DISK_FULL", "b": "done"}
        await until(lambda: [each.name for each in agent.inputs.iterdir()] == [".1-a.png"])

    with_hosted(tmp_path, test, entry(node_workers.speaks))


def test_files_of_a_gateway_that_ends_while_it_sends_are_removed(tmp_path: Path) -> None:
    async def test(gateway: Link, agent: StandInAgent) -> None:
        gateway.tell(Kind.FILE, File("a.png", 6))
        gateway.send(Kind.DATA, b"abc")
        await until(lambda: list(agent.inputs.iterdir()))

    with_hosted(tmp_path, test, entry(node_workers.speaks))
    assert not list((tmp_path / "inputs").iterdir())


def test_worker_that_is_killed_as_its_cards_are_chosen_too_late_is_not_replaced(
    tmp_path: Path,
) -> None:
    async def killed() -> None:
        pass

    async def too_late() -> None:
        raise hosted_workers._TooLate

    async def run() -> None:
        opened = OpenWorker(
            protocol=PROTOCOL, gateway="g", node="n1", name="w", engine="text", visible_devices=""
        )
        async with linked() as (_, link):
            hosted = HostedWorker(link, StandInAgent(tmp_path), opened, 1, lambda _: None)
            both = [asyncio.create_task(killed()), asyncio.create_task(too_late())]
            await asyncio.wait(both)
            assert not await hosted._until_end(asyncio.Event(), both)

    asyncio.run(run())


def test_lora_is_read_from_the_folders_of_models_only(tmp_path: Path) -> None:
    async def test(gateway: Link, _: StandInAgent) -> None:
        sampling = Sampling(max_tokens=1, seed=1)
        (tmp_path / "out").symlink_to("/")
        for name, path in (("a", "/etc"), ("b", f"{tmp_path}/../x"), ("c", f"{tmp_path}/out/etc")):
            lora = TextLora(path)
            job = TextJob(id=name, prompt="x", lora=lora, sampling=sampling, stream=False)
            gateway.send(Kind.COMMANDS, encode_commands([job]))
        reader, failed = FrameReader(), list[str]()
        while len(failed) < 3:
            kind, payload = await gateway.receive()
            events = reader.feed(payload) if kind == Kind.EVENTS else ()
            failed += [each.id for each in events if isinstance(each, Failed)]
        assert failed == ["a", "b", "c"]

    with_hosted(tmp_path, test, entry(node_workers.speaks))


def test_jobs_without_files_leave_nothing_on_a_node(tmp_path: Path) -> None:
    async def test(gateway: Link, agent: StandInAgent) -> None:
        sampling = Sampling(max_tokens=1, seed=1)
        message = node_workers.message(str(tmp_path / "a.png"))
        jobs = [TextJob(id="a", prompt="x", sampling=sampling, stream=False)]
        jobs += [TextJob(id="b", messages=(message,), sampling=sampling, stream=False)]
        gateway.tell(Kind.FILE, File("a.png", 0))
        gateway.send(Kind.COMMANDS, encode_commands(jobs))
        reader, ended = FrameReader(), 0
        while not ended:
            kind, payload = await gateway.receive()
            events = reader.feed(payload) if kind == Kind.EVENTS else ()
            ended += sum(isinstance(each, Ends) for each in events)
        assert agent.hosted is not None
        assert not agent.hosted._jobs

    with_hosted(tmp_path, test, entry(node_workers.speaks))
