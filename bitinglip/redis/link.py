"""Owns the connections to Redis, and knows whether it answers.

While it does not, every call fails at once: only this module tries again, beside the requests, at
growing intervals, and calls its users once it is back.
"""

import asyncio
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import structlog
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bitinglip.redis.errors import RedisAway
from bitinglip.redis.pipeline import Pipeline, fault_of
from bitinglip.redis.scripts import KNOWN, Script
from bitinglip.settings.redis import Redis as RedisSettings
from bitinglip.settings_loader import SettingsError
from bitinglip.telemetry.health import Health
from workers.secret_files import SecretFileRefused, check_secret_file, read_secret_text

log = structlog.get_logger(__name__)

CHECK = PART = "redis"  #: in /health
_SHORTEST, _LONGEST = 0.1, 2.0  #: seconds between two attempts to reach it
_CONNECT_SECONDS = 1.0  #: that an attempt may take, TLS included
_PROTOCOL = 2  #: what every Redis, Valkey and proxy speaks

Hook = Callable[[], Awaitable[None]]


class RedisLink:
    """Owns the connections to Redis. Make it with ``opened``, on the event loop."""

    def __init__(self, settings: RedisSettings, health: Health) -> None:
        self.settings = settings
        self.gateway = secrets.token_hex(6)  #: tells this process from the others
        self.prefix = settings.prefix
        self.away: str | None = None  #: why no call is made now
        self.faults = 0  #: how often it was lost
        self._health = health
        self._seconds = settings.timeout_ms / 1000
        self._options = _options(settings, self._seconds)
        # The pipeline has a time-out for all of a write; those of the library take a task each.
        self._pool = self._new_pool(max_connections=2, timeout=None)
        self._pipeline = Pipeline(self._connect, self._seconds, self._lost)
        self._returns: list[Hook] = []
        self._reviving: asyncio.Task[None] | None = None

    @classmethod
    async def opened(cls, settings: RedisSettings, health: Health) -> "RedisLink":
        """Connect once; if Redis is away the server starts without it. Raises SettingsError."""
        link = cls(settings, health)
        try:
            connection = await link._tried()
        except RedisAway as error:
            link.lost(str(error))
        else:
            await link._pipeline.adopt(connection)
        return link

    # ---- calls ---------------------------------------------------------------------------------

    def call(
        self, script: Script, keys: Sequence[str], args: Sequence[Any] = (), *, once: bool = False
    ) -> "asyncio.Future[Any]":
        """Run a script, in the order of calls; the future may raise RedisAway.

        ``once``: it does more if it is run twice, so it fails if its connection breaks.
        """
        if self.away is not None:
            return self._failed()
        return self._pipeline.call(script, keys, args, once=once)

    def tell(
        self, script: Script, keys: Sequence[str], args: Sequence[Any] = (), *, once: bool = False
    ) -> "asyncio.Future[Any]":
        """Run a script a few milliseconds later, in order: no request waits for the answer."""
        if self.away is not None:
            return self._failed()
        return self._pipeline.call(script, keys, args, waits=False, once=once)

    def command(self, *words: Any) -> "asyncio.Future[Any]":
        """Send a command, as ``call`` does."""
        return self._failed() if self.away is not None else self._pipeline.command(*words)

    def client(self, *, connections: int, timeout: float | None = None) -> Redis:
        """Return a client with connections of its own, for what must not delay the calls.

        ``timeout`` in seconds; by default that of the settings. Its user closes it, with its pool.
        """
        seconds = self._seconds if timeout is None else timeout
        return Redis.from_pool(self._new_pool(max_connections=connections, timeout=seconds))

    def on_return(self, hook: Hook) -> None:
        """Call ``hook`` whenever Redis is back, and may have lost its data."""
        self._returns.append(hook)

    def check_now(self) -> None:
        """Find out whether Redis still answers, after another of its connections failed.

        Without requests with limits no other call would find out.
        """
        self.command("PING")

    def lost(self, reason: str) -> None:
        """Count Redis as away, as another of its connections reports."""
        self._lost(reason)

    @property
    def writes(self) -> tuple[int, float]:
        """Return the number of writes, and the seconds until all their answers."""
        return self._pipeline.writes, self._pipeline.seconds

    async def close(self) -> None:
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.gather(self._reviving, return_exceptions=True)
        with suppress(RedisAway):  # what was told before goes with it
            await self.command("PING")
        await self._pipeline.close()
        await self._pool.disconnect()

    # ---- inside --------------------------------------------------------------------------------

    def _new_pool(self, *, max_connections: int, timeout: float | None) -> ConnectionPool:
        assert self.settings.url is not None
        options = {**self._options, "socket_timeout": timeout}
        pool: ConnectionPool = ConnectionPool.from_url(
            self.settings.url, max_connections=max_connections, **options
        )
        return pool

    async def _connect(self) -> Connection:
        opened: Any = self._pool  # its types are not told
        connection: Connection = opened.make_connection()
        return await _connected(connection)

    def _failed(self) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_exception(RedisAway(self.away))
        answer.exception()  # it need not be awaited
        return answer

    def _lost(self, reason: str) -> None:
        if self.away is not None:
            return
        self.faults += 1
        self._say_why(reason)
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive())

    def _say_why(self, reason: str) -> None:
        self.away = reason
        what = (
            "limited requests are refused"
            if self.settings.when_away == "refuse"
            else ("limits are this gateway's own")
        )
        self._health.degrade(CHECK, PART, f"{reason}; {what}")

    async def _revive(self) -> None:
        """Reconnect until it works; then call the hooks. The reason may change meanwhile."""
        delay = _SHORTEST
        while True:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, _LONGEST)
            try:
                connection = await self._tried()
                break
            except RedisAway as error:
                self._say_why(str(error))
        await self._pipeline.adopt(connection)
        self.away = None
        self._health.recover(CHECK, PART)
        for hook in self._returns:
            try:
                await hook()
            except Exception:  # the next one has to be told, too
                log.exception("a part could not go on with Redis")

    async def _tried(self) -> Connection:
        """Return a new connection. Raises RedisAway where Redis takes no writes over it."""
        opened: Any = self._pool
        connection: Connection = opened.make_connection()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS + self._seconds):
                await _connected(connection)
                await connection.send_command("SET", f"{self.prefix}alive", "1", "PX", "1000")
                await connection.read_response()
        except Exception as error:  # noqa: BLE001  what speaks there may be no Redis
            await connection.disconnect(nowait=True)
            raise fault_of(error) from None
        return connection


async def _connected(connection: Any) -> Connection:
    """Connect, and load all scripts, so that calls run in their order."""
    await connection.connect()
    scripts = [("SCRIPT", "LOAD", each.text) for each in KNOWN.values()]
    await connection.send_packed_command(connection.pack_commands(scripts))
    for _ in scripts:
        await connection.read_response()
    found: Connection = connection
    return found


def _options(settings: RedisSettings, seconds: float) -> dict[str, Any]:
    """Return the options of all connections. Raises SettingsError."""
    options: dict[str, Any] = {
        "protocol": _PROTOCOL,
        "socket_connect_timeout": max(seconds, _CONNECT_SECONDS),
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "client_name": "bitinglip",
    }
    _check_tls(settings)
    if settings.password_file is not None:
        try:
            options["password"] = read_secret_text(settings.password_file)
        except SecretFileRefused as error:
            raise SettingsError([f"redis.password_file: {error}"]) from None
    return options


def _check_tls(settings: RedisSettings) -> None:
    """Check the files that the URL names, which are opened at each connection.

    Raises SettingsError.
    """
    named = dict(parse_qsl(urlsplit(settings.url or "").query))
    authorities, cert = named.get("ssl_ca_certs"), named.get("ssl_certfile")
    key = named.get("ssl_keyfile", cert)
    context, name = ssl.create_default_context(), "ssl_ca_certs"
    try:
        if authorities is not None:
            context.load_verify_locations(authorities)
        name = "ssl_keyfile"
        if key is not None:
            check_secret_file(key)
        name = "ssl_certfile"
        if cert is not None:
            context.load_cert_chain(cert, key, password="")  # else it asks on the terminal
    except SecretFileRefused as error:
        raise SettingsError([f"redis.url: {name}: {error}"]) from None
    except OSError as error:  # ssl.SSLError too
        reason = "no PEM of that kind" if isinstance(error, ssl.SSLError) else error.strerror
        problem = f"redis.url: the file of {name} cannot be used ({reason})"
        raise SettingsError([problem]) from None
