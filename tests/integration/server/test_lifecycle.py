"""Start, kill, drain and stop of the whole process tree."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from model_store.manifest import Manifest, write_manifest
from model_store.store import ModelStore
from tests.support.cli_process import terminal
from tests.support.http_client import NATIVE
from tests.support.model_folders import llama
from tests.support.server import (
    Server,
    alive,
    await_ready,
    descendants,
    running_server,
    start_server,
)
from tests.support.sse import events_of, iter_events
from tests.support.wait import eventually

SLOW_ECHO = (
    "--set",
    "models.demo-echo.fake.tokens_per_second=50",
    "--set",
    "models.demo-echo.fake.faults=true",
)


def test_retry_after_a_kill_under_load_loses_nothing_that_had_not_streamed(tmp_path: Path) -> None:
    tokens = 150  # three seconds

    async def plain(client: httpx.AsyncClient, n: int) -> None:
        body = {"model": "demo-echo", "prompt": f"n{n}", "max_tokens": tokens}
        answer = await client.post(NATIVE, json=body)
        assert answer.status_code == 200
        assert answer.json()["result"]["text"] == " ".join([f"n{n}"] * tokens)

    async def stream(client: httpx.AsyncClient, begun: asyncio.Semaphore) -> None:
        # Those begun first run on until the last one has begun, on a slow machine, too.
        body = {"model": "demo-echo", "prompt": "x", "max_tokens": 20 * tokens, "stream": True}
        text = ""
        async with client.stream("POST", NATIVE, json=body) as answer:
            assert answer.status_code == 200
            async for piece in answer.aiter_text():
                if "event: token" in piece and "event: token" not in text:
                    begun.release()
                text += piece
        finals = [event for event in events_of(text) if event[0] in ("completed", "failed")]
        assert [name for name, _ in finals] == ["failed"]
        assert finals[0][1]["error"]["code"] == "WORKER_CRASHED"

    async def run(server: Server) -> None:
        begun = asyncio.Semaphore(0)
        async with server.async_client() as client:
            await client.post(NATIVE, json={"model": "demo-echo", "prompt": "x", "max_tokens": 1})
            pid = server.worker("demo-echo")["pid"]
            work = [asyncio.create_task(plain(client, n)) for n in range(15)]
            work += [asyncio.create_task(stream(client, begun)) for _ in range(15)]
            for _ in range(15):
                await begun.acquire()
            os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*work)
            assert (await client.get("/health")).json()["status"] == "healthy"

    with running_server(tmp_path / "home", *SLOW_ECHO) as server:
        asyncio.run(run(server))
        eventually(server.idle)
        assert server.worker("demo-echo")["restarts"] == 1


def test_spare_and_workers_end_when_their_gateway_is_killed(tmp_path: Path) -> None:
    with running_server(tmp_path / "home", *SLOW_ECHO, spare=True) as server:
        with server.client() as client:
            [spare] = client.get("/api/v1/workers").json()["data"]
            client.post(NATIVE, json={"model": "demo-echo", "prompt": "x", "max_tokens": 1})
            client.post(NATIVE, json={"model": "demo-text", "prompt": "x", "max_tokens": 1})
        assert server.worker("demo-text")["pid"] == spare["pid"], "the spare became the worker"
        children = descendants(server.process.pid)
        assert len(children) >= 3  # two workers, and the next spare
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(alive(child) for child in children))
        # The lock died with it: another start on the same home works at once.
        os.utime(server.home / "server.json", (1, 1))  # as if the machine had gone down with it
        again = start_server(server.home)
        await_ready(again)
        assert "the machine went down while the server ran" in again.log.read_text()
        assert again.stop() == 0


def test_drain_on_sigterm_then_exit_with_0(tmp_path: Path) -> None:
    # Four seconds, in which the draining server is asked.
    body = {"model": "demo-echo", "prompt": "a b", "max_tokens": 200, "stream": True}
    with running_server(tmp_path / "home", *SLOW_ECHO) as server, server.client() as client:
        children: list[psutil.Process] = []
        with client.stream("POST", NATIVE, json=body) as answer:
            events = iter_events(answer.iter_lines())
            while next(events)[0] != "token":
                pass
            children = descendants(server.process.pid)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: httpx.get(server.url + "/readyz").status_code == 503)
            refused = httpx.post(server.url + NATIVE, json=body, headers=server.headers)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "SHUTTING_DOWN"
            assert "completed" in [name for name, _ in events]
        assert server.process.wait(60) == 0
        eventually(lambda: not any(alive(child) for child in children))
        assert not (server.home / "server.json").exists()
        assert "stopping; requests may end" in server.log.read_text()


def test_drain_is_cut_short_by_a_second_signal(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "model": "demo-echo",
        "prompt": "!slow",
        "max_tokens": 500,
        "stream": True,
    }
    home = tmp_path / "home"
    options = ("--set", "workers.spare=false", *SLOW_ECHO)
    with terminal(home, "serve", "--port", "0", *options) as shell:
        shell.wait_for(f"try +bitinglip chat \\S+ --home {home}\r")
        [url] = re.findall(r"answers on (\S+)", shell.shown)
        headers = {"Authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
        with httpx.stream("POST", url + NATIVE, json=body, headers=headers, timeout=60) as answer:
            events = iter_events(answer.iter_lines())  # let go, it would close the connection
            while next(events)[0] != "token":
                pass
            shell.interrupt()
            shell.wait_for("Waiting for 1 request; Ctrl-C again stops now")
            shell.interrupt()
            assert shell.wait_for_end() == 130  # the request would take minutes
    assert "Traceback" not in shell.shown
    assert " error " not in shell.shown


def test_interrupt_of_a_start_is_quiet(tmp_path: Path) -> None:
    with terminal(tmp_path / "home", "serve", "--port", "0", "--set", "demo=never") as shell:
        shell.wait_for(" info ")  # the log's first line, before the server answers
        shell.interrupt()
        assert shell.wait_for_end() in (0, 130)
    assert "Traceback" not in shell.shown
    assert " error " not in shell.shown


def test_start_of_a_second_server_on_the_same_home_is_refused(tmp_path: Path) -> None:
    with running_server(tmp_path / "home") as server:
        second = start_server(server.home)
        assert second.process.wait(60) == 1
        assert f"pid {server.process.pid}" in server.log.read_text()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--set", "server.prot=1"), 2, "server.port"),
        (("--host", "0.0.0.0", "--set", "security.require_api_key=false"), 1, "allow_insecure"),
        (("--host", "203.0.113.7"), 1, "Cannot listen"),
    ],
)
def test_start_that_cannot_succeed_is_refused_with_a_clear_message(
    tmp_path: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    server = start_server(tmp_path / "home", args)
    assert server.process.wait(60) == code
    assert message in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_health_answers_before_the_models_are_there(tmp_path: Path) -> None:
    server = start_server(tmp_path / "home")
    try:
        eventually((server.home / "server.json").exists)
        server.url = json.loads((server.home / "server.json").read_text())["url"]
        assert httpx.get(server.url + "/livez", timeout=60).status_code == 200
        assert httpx.get(server.url + "/health").status_code == 200
    finally:
        server.stop()


def test_imports_of_gateway_and_command_line_leave_torch_out() -> None:
    code = (
        "import sys, bitinglip.app, bitinglip.server, cli.main\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_start_sweeps_leftovers_and_tells_files_again_that_an_older_version_has_told(
    tmp_path: Path,
) -> None:
    left = tmp_path / "home" / "models" / ".partial" / "removed-0123456789ab" / "files"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"x")
    made = with_older_facts(ModelStore(tmp_path / "home" / "models"), tmp_path)
    with running_server(tmp_path / "home", "--set", "demo=never") as server:
        eventually(lambda: not left.parent.exists())
        with server.client() as client:

            def context() -> int | None:
                found: int | None = client.get("/api/v1/models/old").json()["max_context"]
                return found

            assert made.max_context
            eventually(lambda: context() == made.max_context)


def with_older_facts(store: ModelStore, folder: Path) -> Manifest:
    """Make a model that an older version has told nothing of; return what it told today."""
    made = store.import_folder(llama(folder / "llama"), "old")
    older = msgspec.structs.replace(made, facts=1, max_context=None)
    write_manifest(store.folder("old"), older)
    return made
