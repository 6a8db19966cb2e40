"""Runs the application: the lock on the home, the socket, the signals, the way down."""

import asyncio
import contextvars
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import structlog

from bitinglip import allocator, local_socket, standard_streams
from bitinglip.api.services import Services
from bitinglip.app import build
from bitinglip.confinement import hide_secrets
from bitinglip.db.files import DatabaseError
from bitinglip.errors import DatabaseUnavailable
from bitinglip.guard.words import read_words
from bitinglip.home import Home, HomeLock
from bitinglip.http.capacity import capacity, raise_descriptor_limit
from bitinglip.http.connections import Connections
from bitinglip.http.server import HttpServer
from bitinglip.service_manager import ServiceManager
from bitinglip.settings import Settings
from bitinglip.settings_loader import check_start
from bitinglip.start_text import start_text, stop_text
from bitinglip.telemetry import logs
from bitinglip.tls import Certificate, check_tls

log = structlog.get_logger(__name__)

_LOOPBACK_IS_LOCAL = (
    "requests from loopback are taken for local ones: /metrics needs no key; behind a reverse "
    "proxy on this machine, set server.trust_loopback to false"
)
_LIMITS_APART = (
    "gateways.shared without redis.url: each server applies limits and quotas by itself, so a key "
    "may use them once on each"
)
_WENT_DOWN = (
    "the machine went down while the server ran: if that was under load and it was not switched "
    "off, look at its power supply and its cooling"
)
#: where a server that listens on every address can be reached from its own machine
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
EXIT_FATAL = 70  #: a part of the server died; service managers restart on it
EXIT_FORCED = 130  #: a second signal stopped it before it had drained


class StartRefused(Exception):
    """The server does not start; the message says why in one line."""


def serve(settings: Settings, home: Home, *, demo: bool = False) -> int:
    """Run in the foreground until a signal; returns the exit code.

    Raises SettingsError, HomeError, DatabaseError or :class:`StartRefused` before it answers.
    """
    standard_streams.secure()
    allocator.return_large_blocks(os.environ)
    if demo:
        settings = settings.model_copy(update={"demo": "always"})
    check_start(settings)
    check_tls(settings.server)
    read_words(settings.guard)
    hub_token = hide_secrets(os.environ)
    if settings.gateways.shared:
        home = replace(home, common=Path(settings.gateways.folder or home.root))
    home.create()
    if settings.gateways.secret_file is not None:
        home.adopt_secret(Path(settings.gateways.secret_file))
    with HomeLock(home), _bind(settings) as sock:
        stop_logs = logs.configure(settings.logging)
        try:
            with local_socket.listen(home) as local:
                return _Runner(settings, home, sock, local, hub_token).run()
        except DatabaseUnavailable as error:
            raise DatabaseError(f"{home.database}: {error.message}") from error
        finally:
            stop_logs()
            standard_streams.abandon_broken()


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.server.host.strip("[]"), settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartRefused(
            f"Cannot listen on {host}:{port} ({reason.lower()}). Choose another with --port."
        ) from error
    return sock


class _Runner(HttpServer):
    """Runs uvicorn with our own shutdown: refuse new work, let running work end, then close."""

    def __init__(
        self,
        settings: Settings,
        home: Home,
        sock: socket.socket,
        local: socket.socket | None,
        hub_token: str | None,
    ) -> None:
        self._settings = settings
        self._home = home
        self._socket = sock
        self._local = local
        self._services: Services | None = None
        self._draining: asyncio.Task[None] | None = None
        self._exit_code = 0
        self._manager = ServiceManager(os.environ)
        scheme = "https" if settings.server.tls_cert else "http"
        host, port = sock.getsockname()[:2]
        host = _WILDCARDS.get(host, host)
        self._url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        connections = Connections(capacity(settings.server, raise_descriptor_limit()))
        certificate = Certificate(settings.server) if settings.server.tls_cert else None
        app = build(
            settings,
            home,
            on_open=self._opened,
            on_fatal=self._fatal,
            is_stopping=lambda: self.should_exit,
            connections=connections,
            certificate=certificate,
            hub_token=hub_token,
        )
        options = {"loop": "uvloop", "log_level": "warning", "timeout_graceful_shutdown": 2}
        tls = certificate.context if certificate else None
        super().__init__(app, connections, tls=tls, **options)

    def run(self, sockets: list[socket.socket] | None = None) -> int:  # type: ignore[override]  # it returns None
        if self._home.machine_went_down(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)):
            log.warning(_WENT_DOWN)
        self._home.write_server_json(self._url, os.getpid())
        try:
            super().run(sockets=sockets or [self._socket])
        finally:
            self._home.remove_server_json()
            self._manager.close()
        return self._exit_code

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            if before is not signal.SIG_IGN:  # nohup asks that it be ignored
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._local is not None:
            local_socket.serve(self, self._local)
        self._watchdog = asyncio.create_task(self._manager.feed_watchdog(), name="watchdog")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's
        """Ask for the shutdown; the loop does it."""
        if sig == signal.SIGHUP and self._draining is not None:
            return  # a terminal that closes may send it twice, which does not ask for haste
        if self._draining is not None or not self.started:
            self._exit_code = EXIT_FORCED
            self.should_exit = self.force_exit = True
            return
        asyncio.get_running_loop().call_soon_threadsafe(
            # not in the context of the request that the signal interrupted
            self._drain,
            context=contextvars.Context(),
        )

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._wind_down(), name="drain")

    async def _wind_down(self) -> None:
        self._manager.stopping("lets running requests end")
        if self._services is not None:
            # Who balances the load learns of the end before requests are refused.
            self._services.health.leaving = True
            if notice := self._settings.server.drain_notice:
                log.info("stopping soon; requests are still taken", seconds=notice)
                await asyncio.sleep(notice)
            self._services.tasks.suspend()
            self._services.batches.suspend()
            self._services.downloads.suspend()
            seconds = self._settings.server.drain_timeout
            if running := self._services.dispatcher.in_flight:
                log.info("stopping; requests may end", requests=running, at_most_seconds=seconds)
                if sys.stdout.isatty():
                    standard_streams.say(stop_text(running))
            await self._services.dispatcher.drain(seconds)
        self.should_exit = True

    def _fatal(self) -> None:
        self._exit_code = EXIT_FATAL
        self.should_exit = True

    def _opened(self, services: Services, admin_key: str | None) -> None:
        self._services = services
        services.health.on_change = self._tell_manager
        if self._settings.server.trust_loopback:
            log.info(_LOOPBACK_IS_LOCAL)
        if self._settings.gateways.shared and self._settings.redis.url is None:
            log.warning(_LIMITS_APART)
        # What is here now stays; looking at it again and again costs a fifth of each request.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        operations = services.operations
        key = _key_text(admin_key, self._home) if admin_key else None
        told = (
            operations.devices(),
            operations.device_problems(),
            {model.name: model.capabilities for model in services.store.list()},
        )
        if not self.should_exit:
            columns = standard_streams.columns()
            shown = self._settings.dashboard.enabled
            text = start_text(
                self._url, *told, self._home.root, key, dashboard=shown, columns=columns
            )
            standard_streams.say(text)
        self._manager.ready(self._status())

    def _tell_manager(self) -> None:
        self._manager.status(self._status())

    def _status(self) -> str:
        assert self._services is not None
        problems = self._services.health.problems()
        degraded = "".join(f"; {check} is degraded: {why}" for check, why in problems.items())
        return f"answers on {self._url}{degraded}"


def _key_text(admin_key: str, home: Home) -> str:
    """Show a new admin key on a terminal only: other output ends in journals and log files."""
    if sys.stdout.isatty():
        return f"{admin_key}   (shown once; also in {home.admin_key})"
    return f"in {home.admin_key}"
