"""Serves the application on a Unix socket in the home, too, for commands on the same machine.

The address of a request does not tell a local client from a reverse proxy on the same machine.
Only those who can read the home can open this socket, so its requests are local without doubt.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from bitinglip.api.auth import mark_as_local
from bitinglip.home import Home, socket_address
from bitinglip.http.server import HttpServer

log = structlog.get_logger(__name__)


@contextmanager
def listen(home: Home) -> Iterator[socket.socket | None]:
    """Listen on the home's socket, which only its owner may open; the home's lock must be held.

    Yields None, and logs why, where the home can have no socket: commands use TCP then.
    """
    with socket_address(home.socket) as address, socket.socket(socket.AF_UNIX) as sock:
        try:
            _listen(sock, address)
        except OSError as error:
            log.warning("no Unix socket in the home; commands use TCP", reason=error.strerror)
            yield None
            return
        try:
            yield sock
        finally:
            with suppress(OSError):
                os.unlink(str(address))


def _listen(sock: socket.socket, address: str | None) -> None:
    if address is None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(address).st_mode):
            os.unlink(address)  # its server was killed
    sock.bind(address)
    os.chmod(address, 0o600)  # before listen: until then, no process can connect
    sock.listen()


def serve(server: HttpServer, sock: socket.socket) -> None:
    """Let a started server listen on this socket, too; it closes it with its others."""
    server.listen_locally(sock, _marked)


def _marked(app: ASGIApp) -> ASGIApp:
    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        mark_as_local(scope)
        await app(scope, receive, send)

    return marked
