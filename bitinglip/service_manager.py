"""Tells a service manager (systemd) how the server is: ready, stopping, its state, and alive.

The protocol is datagrams to the socket that NOTIFY_SOCKET names. Without one, nothing is sent.
"""

import asyncio
import os
import socket
from collections.abc import MutableMapping

import structlog

log = structlog.get_logger(__name__)


class ServiceManager:
    """Talks to the manager that started this process, if one did."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take what the manager says out of ``environ``: no child may speak for the server."""
        address = environ.pop("NOTIFY_SOCKET", "")
        interval = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", str(os.getpid()))
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
        #: seconds within which the manager expects a heartbeat; None if it expects none
        self.watchdog_seconds: float | None = None
        if interval.isdecimal() and int(interval) > 0 and pid == str(os.getpid()):
            self.watchdog_seconds = int(interval) / 1e6

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    async def feed_watchdog(self) -> None:
        """Send heartbeats for as long as the event loop turns; return if the
        manager wants none."""
        while self.watchdog_seconds is not None and self._socket is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 3)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:  # the manager restarts, or its queue is full
            log.debug("the service manager was not told", reason=error.strerror)
