"""Runs the application: the lock on the home, the socket, the signals, the way down."""

import asyncio
import gc
import os
import socket
import sys
from types import FrameType

import uvicorn

from bitinglip.api import websocket
from bitinglip.api.services import Services
from bitinglip.app import build
from bitinglip.confinement import hide_secrets
from bitinglip.home import Home, HomeLock
from bitinglip.settings import Settings
from bitinglip.settings_loader import check_bind
from bitinglip.telemetry import logs

#: where a server that listens on every address can be reached from its own machine
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
EXIT_FATAL = 70  #: a part of the server died; service managers restart on it
EXIT_FORCED = 130  #: a second signal stopped it before it had drained


class StartRefused(Exception):
    """The server does not start; the message says why in one line."""


def serve(settings: Settings, home: Home, *, demo: bool = False) -> int:
    """Run in the foreground until a signal; returns the exit code.

    Raises SettingsError, HomeInUse, DatabaseError or :class:`StartRefused` before it answers.
    """
    if demo:
        settings = settings.model_copy(update={"demo": "always"})
    check_bind(settings)
    hide_secrets(os.environ)
    home.create()
    with HomeLock(home), _bind(settings) as sock:
        stop_logs = logs.configure(settings.logging)
        try:
            return _Runner(settings, home, sock).run()
        finally:
            stop_logs()


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.server.host.strip("[]"), settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartRefused(
            f"Cannot listen on {host}:{port} ({reason.lower()}). Choose another with --port."
        ) from error
    return sock


class _Runner(uvicorn.Server):
    """uvicorn with our way down: refuse new work, let running work end, then close."""

    def __init__(self, settings: Settings, home: Home, sock: socket.socket) -> None:
        self._settings = settings
        self._home = home
        self._socket = sock
        self._services: Services | None = None
        self._draining: asyncio.Task[None] | None = None
        self._exit_code = 0
        scheme = "https" if settings.server.tls_cert else "http"
        host, port = sock.getsockname()[:2]
        host = _WILDCARDS.get(host, host)
        self._url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        app = build(settings, home, on_open=self._opened, on_fatal=self._fatal)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                date_header=True,
                lifespan="on",
                loop="uvloop",
                http="httptools",
                **websocket.OPTIONS,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
                ssl_certfile=settings.server.tls_cert,
                ssl_keyfile=settings.server.tls_key,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> int:  # type: ignore[override]
        self._home.write_server_json(self._url, os.getpid())
        try:
            super().run(sockets=sockets or [self._socket])
        finally:
            self._home.remove_server_json()
        return self._exit_code if self.started else 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's
        """A signal's handler only asks; the loop acts."""
        if self._draining is not None or not self.started:
            self._exit_code = EXIT_FORCED
            self.should_exit = self.force_exit = True
            return
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._wind_down(), name="drain")

    async def _wind_down(self) -> None:
        if self._services is not None:
            self._services.tasks.suspend()
            await self._services.dispatcher.drain(self._settings.server.drain_timeout)
        self.should_exit = True

    def _fatal(self) -> None:
        self._exit_code = EXIT_FATAL
        self.should_exit = True

    def _opened(self, services: Services, admin_key: str | None) -> None:
        self._services = services
        # What is here now stays; looking at it again and again costs a fifth of each request.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        lines = [f"BitingLip answers on {self._url}", f"  docs    {self._url}/docs"]
        if admin_key:
            lines.append(f"  key     {admin_key}   (shown once; also in {self._home.admin_key})")
        names = services.store.names()
        lines.append(f"  models  {', '.join(names) or 'none yet: bitinglip models pull REPO'}")
        if names:
            lines.append(
                f"  try     bitinglip chat {'demo-text' if 'demo-text' in names else names[0]}"
            )
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
