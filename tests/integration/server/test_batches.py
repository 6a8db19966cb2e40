"""A batch outlives its server: killed in the middle, or stopped."""

import signal
from pathlib import Path
from typing import Any

import openai

from tests.support.batch_client import begin, chat_line, ended, results
from tests.support.server import await_ready, start_server
from tests.support.wait import eventually

#: One model that pretends, and no process that imports torch: these start at once.
SETS = (
    "models.demo-echo.engine=fake", "models.demo-echo.fake.tokens_per_second=20", "demo=never",
    "server.drain_timeout=1", "batches.lines_at_once_per_batch=8",
)  # fmt: skip
LINES = 60


def test_batch_ends_each_line_once_although_the_server_is_killed(tmp_path: Path) -> None:
    end_lines_once(tmp_path / "home", LINES, [signal.SIGKILL, signal.SIGTERM])


def end_lines_once(home: Path, count: int, stops: list[signal.Signals]) -> None:
    """Run a batch, and stop its server in the middle of it by each of these signals."""
    lines = [
        chat_line(f"line-{n}", f"word{n} x y z", model="demo-echo", max_tokens=4)
        for n in range(count)
    ]
    batch_id = ""
    for number, stop in enumerate([*stops, None]):
        server = start_server(home, [word for each in SETS for word in ("--set", each)])
        try:
            await_ready(server)
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
                batch_id = batch_id or begin(client, lines)
                if stop is None:
                    check(client, ended(client, batch_id), lines)
                    return
                await_count(client, batch_id, count * (number + 1) // (len(stops) + 2))
                assert counted(client, batch_id) < count
            server.process.send_signal(stop)
            server.process.wait(60)
        finally:
            server.stop()


def await_count(client: openai.OpenAI, batch_id: str, least: int) -> None:
    eventually(lambda: counted(client, batch_id) >= least, 60)


def counted(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def check(client: openai.OpenAI, batch: Any, lines: list[dict[str, Any]]) -> None:
    """Check that each line has one answer, and its own."""
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (len(lines), len(lines), 0)
    found = results(client, batch.output_file_id)
    assert sorted(each["custom_id"] for each in found) == sorted(
        each["custom_id"] for each in lines
    )
    for each in found:
        text = each["response"]["body"]["choices"][0]["message"]["content"]
        assert f"word{each['custom_id'].removeprefix('line-')} " in f"{text} "
