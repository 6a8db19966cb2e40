"""The process that pulls for the server: what it is told, and what it says."""

import asyncio
import io
import os
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import uvloop

from bitinglip.downloads.process import _PROGRAM, PullProcess
from model_store.hub.messages import (
    MOST_FILES,
    Message,
    Order,
    Planned,
    Progressed,
    Pulled,
    Refused,
    Waits,
    decode,
    told,
)
from model_store.hub.puller import Teller
from model_store.store import ModelStore
from tests.support.hub import REPO
from tests.support.large_models import SIZE, WEIGHTS, large_hub


def test_puller_obeys_another_bandwidth_while_it_pulls(tmp_path: Path) -> None:
    """Raise the bandwidth during a pull that would take an hour at the first one."""

    async def pull(order: Order) -> list[Message]:
        process = await PullProcess.start(order, "dl_1")
        said: list[Message] = []
        try:
            async for message in process.messages():
                said.append(message)
                if isinstance(message, Planned):
                    process.limit(1 << 30)
            return said
        finally:
            await process.close()

    with large_hub(tmp_path / "hub") as hub:
        order = Order(
            root=str(tmp_path / "store"),
            repo=REPO,
            name="m",
            endpoint=hub.url,
            token="hf_token",
            bytes_per_second=1024,
        )
        said = asyncio.run(pull(order))
    first, last = said[0], said[-1]
    assert isinstance(first, Planned)
    assert first.files[WEIGHTS] > SIZE
    assert isinstance(last, Pulled)
    assert ModelStore(tmp_path / "store").names() == ["m"]


def test_puller_waits_for_another_pull_of_what_it_repairs(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")

    async def say(order: Order, at_wait: ExitStack) -> list[Message]:
        process = await PullProcess.start(order, "dl_1")
        said: list[Message] = []
        try:
            async for message in process.messages():
                said.append(message)
                if isinstance(message, Waits):
                    at_wait.close()
            return said
        finally:
            await process.close()

    with large_hub(tmp_path / "hub") as hub, ExitStack() as other_pull:
        order = Order(root=str(store.root), repo=REPO, name="m", endpoint=hub.url, token="hf_token")
        assert isinstance(asyncio.run(say(order, other_pull))[-1], Pulled)
        weights = store.path("m") / WEIGHTS
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        other_pull.enter_context(store.pulling(REPO))
        repair = msgspec.structs.replace(order, task="repair")
        said = asyncio.run(say(repair, other_pull))
    assert isinstance(said[0], Waits)
    assert isinstance(said[-1], Pulled), said[-1]
    assert said[-1].changes == {"repaired": [WEIGHTS]}
    assert store.verify("m") == []


def test_puller_says_why_it_refuses(tmp_path: Path) -> None:
    async def pull() -> tuple[list[Message], int]:
        order = Order(root=str(tmp_path / "store"), repo="a/b", name="m", endpoint="http://[::1")
        process = await PullProcess.start(order, "dl_1")
        said = [message async for message in process.messages()]
        return said, await process.close()

    said, code = asyncio.run(pull())
    (refused,) = said
    assert isinstance(refused, Refused)
    assert (refused.code, code) == ("DOWNLOAD_FAILED", 1)


def test_puller_that_ends_without_a_word_is_told_by_its_exit_code_and_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program cannot be imported, and its pipes are read as the server does, by uvloop.

    That closes descriptors of pipes by itself: the file, whose number may be another's by then,
    must not be closed once more.
    """
    closed_before: list[int] = []

    class Pipe(io.FileIO):
        def close(self) -> None:
            if not self.closed:
                try:
                    os.fstat(self.fileno())
                except OSError as error:
                    closed_before.append(error.errno or 0)
            super().close()

    async def pull() -> str:
        order = Order(root=str(tmp_path / "store"), repo="a/b", name="m")
        process = await PullProcess.start(order, "dl_1")
        popen = process._process
        assert popen.stdout is not None
        with popen.stdout as before:
            popen.stdout = Pipe(os.dup(before.fileno()))
        assert [message async for message in process.messages()] == []
        return process.ending(await process.close())

    broken = _PROGRAM.replace("model_store.hub.puller", "model_store./srv/none")
    monkeypatch.setattr("bitinglip.downloads.process._PROGRAM", broken)
    said = uvloop.run(pull())
    assert said.startswith("ended with exit code 1 and without a result; it said last: SyntaxErr")
    assert closed_before == []


def test_puller_tells_of_few_files_and_what_is_new() -> None:
    ours, theirs = os.pipe()
    teller = Teller(theirs)
    teller.plan({"a": 10, "b": 10}, {"b": 10})
    teller.plan({"conversion": 5}, {})  # is no part of the download
    for done in range(1, 11):
        teller.advance("a", done)
    teller.advance("conversion", 5)
    teller.tell()
    teller.tell()
    teller.advance("b", 11)
    pulled = Pulled("m", "text", "hub:a/b", None, 20)
    teller.end(pulled)
    teller.advance("b", 12)
    teller.tell()
    os.close(theirs)
    with open(ours, "rb") as pipe:
        *lines, last = pipe
        assert [decode(line) for line in lines] == [
            Planned(
                bytes_total=20, bytes_done=10, files={"a": 10, "b": 10}, done={"a": 0, "b": 10}
            ),
            Progressed(bytes_done=20, files={"a": 10}),
            Progressed(bytes_done=21, files={"b": 11}),
        ]
    assert decode(last) == pulled, "nothing comes after the last message"
    many = told((f"f{number}", number) for number in range(MOST_FILES + 5))
    assert len(many) == MOST_FILES
    assert "f4" not in many
