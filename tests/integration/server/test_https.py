"""HTTPS as a user starts it, and the admin key, which only a terminal shows."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.certificates import make_certificate
from tests.support.cli_process import run, terminal
from tests.support.server import running_server, start_server
from tests.support.wait import eventually

ROOT = Path(__file__).parents[3]
QUIET = ("--set", "demo=never", "--set", "workers.spare=false")


def https(cert: Path, key: Path) -> tuple[str, ...]:
    return (*QUIET, "--set", f"server.tls_cert={cert}", "--set", f"server.tls_key={key}")


def answers(home: Path, trust: ssl.SSLContext) -> bool:
    with contextlib.suppress(OSError, ValueError, httpx.TransportError):
        url = json.loads((home / "server.json").read_text())["url"]
        return httpx.get(f"{url}/readyz", verify=trust).status_code == 200
    return False


def healthcheck(home: Path) -> "subprocess.CompletedProcess[bytes]":
    """Run what the container image asks its server with."""
    environ = {**os.environ, "BITINGLIP_HOME": str(home), "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, str(ROOT / "deploy/healthcheck.py")]
    return subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)


def test_https_serves_and_its_risks_are_in_the_log(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, days=10)
    key.chmod(0o640)
    home = tmp_path / "home"
    server = start_server(home, https(cert, key))
    try:
        trust = ssl.create_default_context(cafile=cert)
        eventually(lambda: answers(home, trust), 60)
        assert run(home, "workers", "list").returncode == 0  # over the Unix socket, without TLS
        assert healthcheck(home).returncode == 0
    finally:
        assert server.stop() == 0
    assert healthcheck(home).returncode == 1
    log = server.log.read_text()
    assert f"the TLS certificate {cert} expires on" in log


def test_https_with_a_wrong_key_is_refused_in_one_line(tmp_path: Path) -> None:
    cert, _ = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, name="other")
    home = tmp_path / "home"
    for key, problem in [
        (other, f"server.tls_key: {other} is not the key of the certificate in {cert}"),
        (tmp_path / "lost.key", f"server.tls_key: {tmp_path / 'lost.key'} cannot be read"),
    ]:
        refused = run(home, "serve", "--port", "0", *https(cert, key))
        assert refused.returncode == 1
        [line] = refused.stderr.splitlines()
        assert problem in line
    assert not home.exists()


def test_admin_key_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    with running_server(tmp_path / "home", *QUIET) as server:
        eventually(lambda: "BitingLip answers on" in server.log.read_text())
    shown = server.log.read_text()
    assert server.key.startswith("blk_")
    assert server.key not in shown
    assert f"key     in {server.home / 'admin.key'}" in shown
    assert "\n  devices " in shown
    home = tmp_path / "other"
    with terminal(home, "serve", "--port", "0", *QUIET) as shell:
        shell.wait_for(r"key +blk_live_\S+ +\(shown once", 60)
        assert (home / "admin.key").read_text().strip() in shell.shown
        shell.interrupt()
        shell.wait_for_end(30)


def test_tls_handshakes_that_never_end_take_no_place(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    home = tmp_path / "home"
    server = start_server(home, (*https(cert, key), "--set", "server.max_connections=8"))
    try:
        trust = ssl.create_default_context(cafile=cert)
        eventually(lambda: answers(home, trust), 60)
        url = json.loads((home / "server.json").read_text())["url"]
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                address = ("127.0.0.1", int(url.rpartition(":")[2]))
                sock = stack.enter_context(socket.create_connection(address, timeout=60))
            assert answers(home, trust)
            assert sock.recv(1) == b""  # given up after the time that headers have
            assert answers(home, trust)
    finally:
        assert server.stop() == 0
