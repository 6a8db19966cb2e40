"""Asynchronous tasks across a stop of the server, gentle or not."""

import signal
from pathlib import Path

import httpx

from tests.support.http_client import NATIVE
from tests.support.server import Server, await_ready, running_server, start_server
from tests.support.task_client import ECHO, ONE_AT_A_TIME, SLOW, TASKS, await_status, begin, task
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch


def one_runs_and_one_waits(client: httpx.Client) -> tuple[str, str]:
    running = begin(client, SLOW)
    await_status(client, running, "running")
    waiting = begin(client, ECHO)
    assert task(client, waiting)["status"] == "queued"
    return running, waiting


def started_again(server: Server, *args: str) -> Server:
    again = start_server(server.home, args)
    await_ready(again)
    return again


def test_restart_after_a_kill_fails_what_ran_and_runs_what_waited(tmp_path: Path) -> None:
    with running_server(tmp_path / "home", *ONE_AT_A_TIME) as server:
        with server.client() as client:
            running, waiting = one_runs_and_one_waits(client)
            later = begin(client, ECHO)
            dropped = begin(client, ECHO)
            client.delete(f"{TASKS}/{dropped}")
        server.process.kill()
        server.process.wait()
        again = started_again(server, *ONE_AT_A_TIME)
        try:
            with again.client() as client:
                lost = task(client, running)
                assert lost["status"] == "failed"
                assert lost["error"]["code"] == "SHUTTING_DOWN"
                assert "restarted while it ran" in lost["error"]["message"]
                for each in (waiting, later):
                    ended = await_status(client, each, "completed")
                    assert ended["result"]["text"] == "one two three one two"
                    assert ended["created_at"] < ended["completed_at"]
                assert task(client, dropped)["status"] == "cancelled"
                eventually(again.idle)
                # Only the two that ran to their end are charged, and once.
                (used,) = client.get("/api/v1/usage", params={"group_by": "key"}).json()["data"]
                assert (used["requests"], used["total_tokens"]) == (2, 2 * (3 + 5))
        finally:
            assert again.stop() == 0


def test_drain_leaves_waiting_tasks_to_the_next_start(tmp_path: Path) -> None:
    args = (*ONE_AT_A_TIME, "--set", "server.drain_timeout=1")
    with running_server(tmp_path / "home", *args) as server:
        with server.client() as client:
            running, waiting = one_runs_and_one_waits(client)
            with open_watch(server.url, waiting, **server.headers) as socket:
                server.process.send_signal(signal.SIGTERM)
                messages, code = heard(socket)
            # Nobody is told of an end that is none.
            assert {name for name, _ in messages} <= {"queued"}
            assert code == 1012
        assert server.process.wait(60) == 0
        again = started_again(server, *args)
        try:
            with again.client() as client:
                cut = task(client, running)
                assert (cut["status"], cut["error"]["code"]) == ("failed", "SHUTTING_DOWN")
                await_status(client, waiting, "completed")
        finally:
            again.stop()


def test_drain_lets_a_running_task_end(tmp_path: Path) -> None:
    with running_server(tmp_path / "home", *ONE_AT_A_TIME) as server:
        with server.client() as client:
            task_id = begin(client, {**SLOW, "max_tokens": 4})  # four seconds, to be asked in
            await_status(client, task_id, "running")
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: httpx.get(server.url + "/readyz").status_code == 503)
            refused = client.post(NATIVE, json={**ECHO, "async": True})
            assert refused.json()["error"]["code"] == "SHUTTING_DOWN"
        assert server.process.wait(60) == 0
        again = started_again(server)
        try:
            with again.client() as client:
                assert task(client, task_id)["status"] == "completed"
                assert client.get(TASKS).json()["total"] == 1
        finally:
            again.stop()


def test_task_whose_model_is_gone_fails_at_the_next_start(tmp_path: Path) -> None:
    with running_server(tmp_path / "home", *ONE_AT_A_TIME) as server:
        with server.client() as client:
            _, waiting = one_runs_and_one_waits(client)
        server.process.kill()
        server.process.wait()
        (server.home / "models" / "demo-echo").rename(tmp_path / "elsewhere")
        again = started_again(server, "--set", "demo=never")
        try:
            with again.client() as client:
                error = await_status(client, waiting, "failed")["error"]
                assert error["code"] == "INVALID_MODEL"
        finally:
            again.stop()
