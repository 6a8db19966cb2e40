"""Lines of batches, and the files of their results: each line once, whatever stops the server."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bitinglip.batches.lines import mark_of, read, recover, scan, usage_of
from bitinglip.batches.results import Result, Results
from bitinglip.disk_space import DiskSpace
from bitinglip.wire.batches import CachedTokens, ReasoningTokens, Usage, answered_line

URL = "/v1/completions"


def asked(custom_id: str, size: int = 1) -> bytes:
    body = {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"prompt": "x" * size}}
    return json.dumps(body).encode()


def ended(custom_id: str, *, failed: bool = False) -> Result:
    return Result(mark_of(custom_id), b'{"custom_id":"%b"}\n' % custom_id.encode(), failed)


def using(tmp_path: Path, act: Callable[[Results], Awaitable[None]]) -> None:
    async def run() -> None:
        space = DiskSpace(tmp_path, 0)
        async with asyncio.timeout(60):
            results = await Results.open(tmp_path / "output", tmp_path / "errors", space)
            await act(results)
            await results.settle()

    asyncio.run(run())


def test_scan_finds_each_line_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(asked("a") + b"\r\n\n" + asked("b", 500) + b"\n" + asked("c"))
    found = scan(path, URL, most_lines=3, longest=1000)
    assert not found.errors
    assert [read(path, each).custom_id for each in found.lines] == ["a", "b", "c"]


def test_scan_goes_on_behind_a_line_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"\n".join([asked("a"), asked("b", 3_000_000), b"nothing", asked("c")]))
    found = scan(path, URL, most_lines=3, longest=1000)
    wrong = [(each.line, each.code) for each in found.errors]
    assert wrong == [(2, "line_too_long"), (3, "invalid_json_line")]
    assert [read(path, each).custom_id for each in found.lines] == ["a", "c"]


def test_scan_names_a_hundred_errors_at_most(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"wrong\n" * 1000)
    assert len(scan(path, URL, most_lines=3, longest=1000).errors) == 100


@pytest.mark.parametrize("torn", [b'{"custom_id": "c"', b'{"custom_id":"c"}', b"\0" * 100])
def test_results_that_were_torn_are_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "output"
    whole = ended("a").line + ended("b").line
    path.write_bytes(whole + torn)
    found = recover(path)
    assert (found.marks, found.size) == ([mark_of("a"), mark_of("b")], len(whole))
    assert path.read_bytes() == whole


def test_results_go_on_where_a_stop_has_torn_them(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(ended("a").line + b'{"custom')
    (tmp_path / "errors").write_bytes(ended("b").line)

    async def act(results: Results) -> None:
        assert results.done == {mark_of("a"), mark_of("b")}
        await results.add([ended("c"), ended("d", failed=True)])
        assert (results.completed, results.failed) == (2, 2)

    using(tmp_path, act)
    assert (tmp_path / "output").read_bytes() == ended("a").line + ended("c").line
    assert (tmp_path / "errors").read_bytes() == ended("b").line + ended("d").line


def test_results_of_a_run_before_are_counted_with_their_tokens(tmp_path: Path) -> None:
    said = [
        {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
        {"input_tokens": 4, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 2}},
        {"prompt_tokens": 6},
    ]
    lines = [
        answered_line("1", str(at), 200, json.dumps({"usage": each}).encode())
        for at, each in enumerate(said)
    ]
    (tmp_path / "output").write_bytes(b"".join(lines[:2]))

    async def act(results: Results) -> None:
        await results.add([Result(mark_of("2"), lines[2], False, usage_of(lines[2]))])
        assert results.usage == Usage(13, CachedTokens(1), 7, ReasoningTokens(2), 20)

    using(tmp_path, act)


def test_results_are_written_once_the_disk_takes_them(tmp_path: Path) -> None:
    """A folder in the place of the file stands for a disk that fails."""

    async def act(results: Results) -> None:
        (tmp_path / "output").mkdir()
        adding = asyncio.create_task(results.add([ended("a")]))
        await asyncio.sleep(0.1)
        assert not results.done
        (tmp_path / "output").rmdir()
        await adding
        assert results.done == {mark_of("a")}

    using(tmp_path, act)
    assert (tmp_path / "output").read_bytes() == ended("a").line


def test_results_of_a_cancelled_writer_are_written_and_counted(tmp_path: Path) -> None:
    async def act(results: Results) -> None:
        adding = [asyncio.create_task(results.add([ended(str(each))])) for each in range(20)]
        await asyncio.sleep(0)
        for each in adding:
            each.cancel()
        await asyncio.gather(*adding, return_exceptions=True)
        await results.settle()
        assert len(results.done) == results.completed == 20

    using(tmp_path, act)
    assert len((tmp_path / "output").read_bytes().splitlines()) == 20


def test_results_start_again_where_they_were_removed(tmp_path: Path) -> None:
    async def act(results: Results) -> None:
        await results.add([ended("a")])
        (tmp_path / "output").unlink()
        await results.add([ended("b")])
        await results.add([ended("c")])

    using(tmp_path, act)
    assert (tmp_path / "output").read_bytes() == ended("b").line + ended("c").line
