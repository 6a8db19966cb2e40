"""The home's Unix socket: commands of the server's own machine use it, and only its owner can."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.cli_process import run
from tests.support.model_folders import llama
from tests.support.server import Server, await_ready, running_server, start_server

PATH_OF_A_SOCKET = 100  #: bytes; a longer one is reached through its folder's descriptor


@pytest.fixture(scope="module")
def behind_a_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide a server whose loopback is not to be trusted, in a home with a short path."""
    home = tmp_path_factory.mktemp("s") / "home"
    sets = ("server.trust_loopback=false", "workers.spare=false", "demo=never")
    with running_server(home, *(word for value in sets for word in ("--set", value))) as server:
        yield server


def over_the_socket(home: Path) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(home / "server.sock"))
    return httpx.Client(transport=transport, base_url="http://localhost")


def test_local_socket_is_private(behind_a_proxy: Server) -> None:
    found = (behind_a_proxy.home / "server.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_local_socket_opens_what_loopback_does_not(behind_a_proxy: Server, tmp_path: Path) -> None:
    body = {"path": str(llama(tmp_path / "model")), "name": "direct"}
    with behind_a_proxy.client() as client:
        assert httpx.get(behind_a_proxy.url + "/metrics").status_code == 401
        assert client.get("/metrics").status_code == 200
        assert client.post("/api/v1/models/import", json=body).status_code == 403
    with over_the_socket(behind_a_proxy.home) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/api/v1/models").status_code == 401  # it stands for no key
        headers = behind_a_proxy.headers
        assert client.post("/api/v1/models/import", json=body, headers=headers).status_code == 201


def test_commands_use_the_local_socket(behind_a_proxy: Server, tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    done = run(behind_a_proxy.home, "models", "import", str(folder), "--name", "by-command")
    assert done.returncode == 0, done.stderr
    assert "by-command" in run(behind_a_proxy.home, "models", "list").stdout
    refused = run(
        behind_a_proxy.home,
        *("models", "import", str(folder), "--name", "by-address"),
        BITINGLIP_URL=behind_a_proxy.url,
    )
    assert (refused.returncode, "own machine" in refused.stderr) == (1, True)


def test_local_socket_of_a_killed_server_is_replaced_and_removed_at_the_end(
    tmp_path: Path,
) -> None:
    parent = tmp_path / ("x" * PATH_OF_A_SOCKET)  # no Unix address is that long
    parent.mkdir()
    sets = ("--set", "workers.spare=false", "--set", "demo=never")
    killed = start_server(parent / "home", sets)
    await_ready(killed)
    killed.process.kill()
    killed.process.wait()
    assert (killed.home / "server.sock").is_socket()
    with running_server(parent / "home", *sets) as server:
        assert run(server.home, "workers", "list").returncode == 0
        folder = os.open(server.home, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"/proc/self/fd/{folder}/server.sock")
        os.close(folder)
    assert not (server.home / "server.sock").exists()


def test_server_starts_without_a_local_socket_where_its_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "home" / "server.sock").mkdir(parents=True)
    with running_server(tmp_path / "home", "--set", "demo=never") as server:
        assert run(server.home, "workers", "list").returncode == 0
    assert "no Unix socket in the home" in server.log.read_text()
