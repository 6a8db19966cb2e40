"""Models' files on their way to a node, over real sockets, into a real folder."""

import asyncio
import errno
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from workers.framing import BadFrame
from workers.nodes.link import Link, LinkLost
from workers.nodes.messages import (
    PROTOCOL,
    Kind,
    Need,
    OpenFiles,
    OpenWorker,
    Tree,
    TreeFile,
    Trees,
)
from workers.nodes.models import intake, sender
from workers.nodes.models.intake import Deliveries, WorkerModels
from workers.nodes.models.sender import Sender
from workers.nodes.models.source import ModelSource
from workers.nodes.models.trees import key_of
from workers.protocol import (
    Failed,
    Load,
    LoadFailed,
    Sampling,
    SpeechOptions,
    TextJob,
    TextLora,
    TextOptions,
)

SECONDS = 20
SIZE = 5 << 20  #: of several pieces
ORIGIN = "1" * 32
SAMPLING = Sampling(max_tokens=1)


class NearNode:
    """Is a node whose folder and intake are in this process, behind sockets."""

    name = "n1"

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.deliveries = Deliveries(str(folder), max_bytes)
        self.opened = 0
        self.links: list[Link] = []
        self.needs: list[Need] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open_files(self, opened: OpenFiles) -> Link:
        self.opened += 1
        left, right = socket.socketpair()
        gateway = Link(*await asyncio.open_connection(sock=left))
        node = _Noted(*await asyncio.open_connection(sock=right))
        node.needs = self.needs
        self.links.append(gateway)
        self._tasks.append(asyncio.create_task(self._serve(node, opened.token)))
        return gateway

    async def _serve(self, link: Link, token: str) -> None:
        try:
            await self.deliveries.take(link, token)
        except (LinkLost, BadFrame):
            pass
        finally:
            link.close()

    async def close(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Noted(Link):
    """Notes what the node asks for."""

    needs: list[Need]

    def tell(self, kind: Kind, message: object) -> None:
        if isinstance(message, Need):
            self.needs.append(message)
        super().tell(kind, message)


Told = list[tuple[int, int]]


class Place:
    """Holds a gateway's folder of models and a node."""

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        self.models = root / "models"
        self.copies = root / "copies"
        self.node = NearNode(self.copies, max_bytes)
        self.source = ModelSource(self.models, ORIGIN, lambda _: {}, dict)
        self.told: Told = []

    def model(self, name: str, **contents: bytes) -> str:
        folder = self.models / name
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            (folder / path).write_bytes(content)
        return str(folder)

    @asynccontextmanager
    async def worker(self, token: str = "w") -> AsyncIterator[tuple[WorkerModels, Sender]]:
        """Yield the two sides of the copying for one worker."""
        there = self.node.deliveries.expect(
            OpenWorker(
                protocol=PROTOCOL,
                gateway="g",
                node="n1",
                name="m/0",
                engine="text",
                visible_devices="",
                origin=ORIGIN,
                token=token,
            )
        )

        def told(have: int, total: int) -> None:
            self.told.append((have, total))

        try:
            yield there, Sender(self.source, self.node, token, told)
        finally:
            await self.node.deliveries.end(token)


def load(path: str, **own: object) -> Load:
    return Load(model="m", engine="text", path=path, **own)  # type: ignore[arg-type]  # any fields


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(bounded())


def test_all_that_a_load_names_comes_once_and_is_found_there(tmp_path: Path) -> None:
    place, weights = Place(tmp_path), os.urandom(SIZE)
    path = place.model("m", weights=weights, config=b"{}")
    vocoder = place.model("v", weights=b"v")
    voice = Path(place.model("voices", anna=b"a")) / "anna"

    async def test() -> None:
        speech = SpeechOptions(vocoder=vocoder, voices={"anna": str(voice)})
        text = TextOptions(lora_folder=str(place.models / ".lent"))
        command = load(path, speech=speech, text=text, adapter=place.model("l", adapter=b"l"))
        async with place.worker() as (there, sending):
            assert await sending.bring([command]) == ([command], [])
            here = {each: Path(there.local(each) or "") for each in (path, vocoder, str(voice))}
            assert (here[path] / "weights").read_bytes() == weights
            assert (here[vocoder] / "weights").read_bytes() == b"v"
            assert here[str(voice)].read_bytes() == b"a"
            assert all(each.is_relative_to(place.copies) for each in here.values())
            assert place.told[-1] == (SIZE + 5, SIZE + 5)
            assert os.listdir(there.lent) == []
        asked = len(place.node.needs)
        async with place.worker() as (_, sending):
            await sending.bring([command])
        assert len(place.node.needs) == asked, "all was there"

    run(test)


def test_lora_of_a_job_comes_before_it_and_one_that_changed_fails_its_job_alone(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    lora = Path(place.model("l", adapter=b"lora"))
    stamps = {"adapter": (4, (lora / "adapter").stat().st_mtime_ns)}

    async def test() -> None:
        async with place.worker() as (there, sending):
            good = TextJob(id="j", sampling=SAMPLING, lora=TextLora(str(lora), stamps))
            bad = TextJob(
                id="k", sampling=SAMPLING, lora=TextLora(str(lora / "x"), {"adapter": (4, 1)})
            )
            able, ended = await sending.bring([good, bad])
            assert able == [good]
            assert [(each.id, each.code) for each in ended if isinstance(each, Failed)] == [
                ("k", "INFERENCE_FAILED")
            ]
            found = Path(there.local(str(lora)) or "")
            assert (found / "adapter").read_bytes() == b"lora"
            assert found.is_relative_to(there.lent)
            await sending.bring([good])
            assert place.node.opened == 1
        place.node.deliveries.models.drop((key_of(place.source.tree(str(lora))[0].files),), ORIGIN)
        assert not list(place.copies.glob("blobs/*/*"))

    run(test)


def test_lora_that_does_not_come_in_time_fails_its_job_and_holds_no_others_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_LORA_SECONDS", 0.2)
    place = Place(tmp_path)
    lora = place.model("l", adapter=b"lora")
    other = place.node.deliveries.models.begin(place.source.tree(lora)[0], ORIGIN)  # and stands

    async def test() -> None:
        async with place.worker() as (_, sending):
            job = TextJob(id="j", sampling=SAMPLING, lora=TextLora(lora))
            able, (failed,) = await sending.bring([job])
            assert isinstance(failed, Failed)
            assert (able, "not come to the node n1" in failed.message) == ([], True)
            other.close()
            assert await sending.bring([job]) == ([job], [])

    run(test)


def test_copying_that_was_cut_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    place, weights = Place(tmp_path), os.urandom(SIZE)
    path = place.model("m", weights=weights)

    async def test() -> None:
        async with place.worker() as (_, sending):
            copying = asyncio.create_task(sending.bring([load(path)]))
            await at_once(lambda: _have(place.copies) >= 1 << 20)
            copying.cancel()  # the gateway is killed
            await asyncio.gather(copying, return_exceptions=True)
            await place.node.close()
        async with place.worker() as (there, sending):
            copying = asyncio.create_task(sending.bring([load(path)]))
            await at_once(lambda: len(place.node.needs) == 2)
            place.node.links[-1].abort()  # only the connection ends: it is opened again
            await copying
            assert (Path(there.local(path) or "") / "weights").read_bytes() == weights
        assert place.node.needs[0].offset == 0
        assert all(each.offset >= 1 << 20 for each in place.node.needs[1:])

    run(test)


async def at_once(condition: Callable[[], bool]) -> None:
    """Wait for what passes quickly: all turns of the loop are looked at."""
    while not condition():  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(0)


def _have(copies: Path) -> int:
    return sum(each.stat().st_size for each in (copies / "parts").iterdir())


def test_two_workers_that_want_one_model_bring_it_once(tmp_path: Path) -> None:
    place, weights = Place(tmp_path), os.urandom(SIZE)
    path = place.model("m", weights=weights)

    async def test() -> None:
        async with place.worker("a") as (one, first), place.worker("b") as (two, second):
            await asyncio.gather(first.bring([load(path)]), second.bring([load(path)]))
            assert one.local(path) == two.local(path) is not None
        assert len(place.node.needs) == 1

    run(test)


def test_gateway_that_stands_still_gives_up_what_another_can_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_SILENT_SECONDS", 0.2)
    place = Place(tmp_path)
    path = place.model("m", weights=os.urandom(SIZE))

    async def test() -> None:
        async with place.worker("still") as (_, _), place.worker() as (there, sending):
            link = await place.node.open_files(OpenFiles(protocol="", token="still"))
            link.tell(Kind.TREES, Trees((place.source.tree(path)[0],)))
            while (await link.receive())[0] != Kind.NEED:
                pass
            await sending.bring([load(path)])
            assert there.local(path) is not None
            with pytest.raises(LinkLost):  # so that it goes on by another connection
                await link.receive()
            link.abort()

    run(test)


def failure(ended: list[object]) -> LoadFailed:
    (event,) = ended
    assert isinstance(event, LoadFailed)
    return event


def test_model_that_cannot_fit_fails_by_the_name_of_the_setting(tmp_path: Path) -> None:
    place = Place(tmp_path, max_bytes=100)
    path = place.model("m", weights=os.urandom(SIZE))

    async def test() -> None:
        async with place.worker() as (_, sending):
            failed = failure([*(await sending.bring([load(path)]))[1]])
        assert failed.code == "DISK_FULL"
        assert "workers.ray.models_max_bytes" in failed.message
        assert "n1" in failed.message

    run(test)


def test_disk_that_fills_up_ends_the_copying_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write = Place(tmp_path), os.pwrite
    path = place.model("m", weights=os.urandom(SIZE))

    def fills_up(fd: int, data: bytes, offset: int) -> int:
        if offset >= 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fills_up)

    async def test() -> None:
        async with place.worker() as (_, sending):
            failed = failure([*(await sending.bring([load(path)]))[1]])
        assert (failed.code, "disk is full" in failed.message) == ("DISK_FULL", True)

    run(test)


def test_file_that_changes_on_the_gateway_meanwhile_fails_the_load(tmp_path: Path) -> None:
    place = Place(tmp_path)
    path = place.model("m", weights=os.urandom(SIZE))
    kept, _ = place.source.tree(path)
    found = (Path(path) / "weights").stat()
    (Path(path) / "weights").write_bytes(os.urandom(SIZE))
    listed = {each.path: (each.size, found.st_mtime_ns, each.sha256) for each in kept.files}
    os.utime(Path(path) / "weights", ns=(found.st_atime_ns, found.st_mtime_ns))
    place.source = ModelSource(place.models, ORIGIN, lambda _: listed, dict)

    async def test() -> None:
        async with place.worker() as (there, sending):
            failed = failure([*(await sending.bring([load(path)]))[1]])
            assert "not those announced" in failed.message
            assert len(place.node.needs) == 2, "it was asked for once more"
            assert there.local(path) is None
            (Path(path) / "weights").unlink()
            failed = failure([*(await sending.bring([load(path)]))[1]])
            assert "could not be read on the gateway" in failed.message
            other = place.model("m", weights=os.urandom(SIZE))
            assert (await sending.bring([load(other)]))[1] == []

    run(test)


@pytest.mark.parametrize("path", ["../x", "/x", "a/./b"])
def test_gateway_that_names_a_path_outside_ends_its_connection(tmp_path: Path, path: str) -> None:
    place = Place(tmp_path)

    async def test() -> None:
        async with place.worker():
            link = await place.node.open_files(OpenFiles(protocol="", token="w"))
            file = TreeFile(path, 1, hashlib.sha256(b"x").hexdigest())
            link.tell(Kind.TREES, Trees((Tree(source="/m", files=(file,)),)))
            with pytest.raises(LinkLost):
                await link.receive()
            link.abort()
        assert not list((place.copies / "trees").iterdir())

    run(test)


def test_files_of_a_worker_that_has_ended_are_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def test() -> None:
        link = await place.node.open_files(OpenFiles(protocol="", token="gone"))
        kind, _ = await link.receive()
        assert kind == Kind.REFUSED
        link.abort()

    run(test)
