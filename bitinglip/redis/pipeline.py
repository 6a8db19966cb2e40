"""Sends calls down one connection, in the order in which they were made.

What is asked while an answer is awaited goes together with the next write, so one connection
carries all requests, and what a request gives back is sent after what it took. A write has its
answers within ``timeout`` seconds; else all fail that wait, because the connection is given up.

Where a connection breaks, what had no answer may have been run or not. It is sent again only if to
run twice is to run once; the rest fails, and time or a lease makes good what it may have taken.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import hiredis
import redis.exceptions
import structlog
from redis.asyncio import Connection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from bitinglip.redis.errors import RedisAway
from bitinglip.redis.scripts import Script

log = structlog.get_logger(__name__)

_AT_ONCE = 256  #: calls of one write
_REST_SECONDS = 0.005  #: for which calls that nothing waits for look for company
_MOST_WAITING = 4096  #: more are refused: Redis is too slow for them then
#: errors of a script that met keys which another program has spoiled
_OF_KEYS = re.compile(r"WRONGTYPE|(ERR )?(user_script:|Error running script)")
_CLUSTER = "it is a node of a Redis Cluster, whose redirections are not followed: name a proxy"
#: what went wrong, in words without anything that a client or the operator has sent
_REASONS: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: "its TLS certificate is not trusted, or is for another name",
    ssl.SSLError: "TLS cannot be agreed on with it",
    MovedError: _CLUSTER,
    AskError: _CLUSTER,
    ClusterDownError: _CLUSTER,
    AuthenticationError: "it refuses the password, or asks for one (redis.password_file)",
    NoPermissionError: "it refuses its user the right to do this",
    ReadOnlyError: "it is a replica, which only reads",
    OutOfMemoryError: "it has no memory left",
    ResponseError: "it refuses a command",
    TimeoutError: "it does not answer in time",
    redis.exceptions.TimeoutError: "it does not answer in time",
}


class _Call(NamedTuple):
    command: tuple[Any, ...]
    script: Script | None
    answer: "asyncio.Future[Any]"
    once: bool = False  #: to run it twice would count twice

    @property
    def whole(self) -> tuple[Any, ...]:
        """Return the command with the script's text in place of its digest."""
        assert self.script is not None
        return ("EVAL", self.script.text, *self.command[2:])


class Pipeline:
    """Owns a connection. ``connect`` opens one; ``on_fault`` is told why it was given up."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        timeout: float,
        on_fault: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._timeout = timeout
        self._on_fault = on_fault
        self._connection: Connection | None = None
        self._waiting: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self.writes = 0
        self.seconds = 0.0  #: until their answers were there

    def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        waits: bool = True,
        once: bool = False,
    ) -> "asyncio.Future[Any]":
        """Run a script; the future has its answer, or RedisAway.

        What nothing ``waits`` for goes with the next call, or after a short while. What is to run
        ``once`` at most fails if the connection breaks before its answer has come.
        """
        words = ("EVALSHA", script.digest, len(keys), *keys, *args)
        return self._put(words, script, waits, once)

    def command(self, *words: Any) -> "asyncio.Future[Any]":
        """Send a command; the future has its answer, or RedisAway."""
        return self._put(words, None)

    async def close(self) -> None:
        """Give up the connection; what still waits fails."""
        if self._later is not None:
            self._later.cancel()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        self._fail(self._take(len(self._waiting)), RedisAway("the server stops"))
        await self.drop()

    async def adopt(self, connection: Connection) -> None:
        """Use a connection that is open."""
        await self.drop()
        self._connection = connection

    async def drop(self) -> None:
        """Give up the connection, so that the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _put(
        self,
        command: tuple[Any, ...],
        script: Script | None,
        waits: bool = True,
        once: bool = False,
    ) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= _MOST_WAITING:
            _fail(answer, RedisAway("it is too slow"))
            return answer
        self._waiting.append(_Call(command, script, answer, once))
        if waits:
            self._start()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(_REST_SECONDS, self._start)
        return answer

    def _start(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        """Send waiting calls until none is left."""
        while self._waiting:
            calls = self._take(_AT_ONCE)
            answers: list[Any] = []
            try:
                await self._exchanged(calls, answers)
            except BaseException as error:
                fault = fault_of(error)
                self._deliver(calls, answers)  # what came before
                self._fail([*calls, *self._take(len(self._waiting))], fault)
                await self.drop()
                if not isinstance(error, Exception):
                    raise
                if not isinstance(error, (RedisError, OSError, RedisAway)):
                    log.warning("Redis says what is not understood", reason=type(error).__name__)
                self._on_fault(str(fault))
                return
            self._deliver(calls, answers)

    def _deliver(self, calls: Sequence[_Call], answers: Sequence[Any]) -> None:
        """Answer those calls whose answers there are."""
        for call, answer in zip(calls, answers, strict=False):
            if call.answer.done():  # its request has gone
                continue
            if isinstance(answer, ResponseError):
                self._refused(call, answer)
            elif isinstance(answer, RedisAway):
                _fail(call.answer, answer)
            else:
                call.answer.set_result(answer)

    async def _exchanged(self, calls: Sequence[_Call], answers: list[Any]) -> None:
        """Append the answers to calls; of those that cannot be run, their errors."""
        began = time.perf_counter()
        async with asyncio.timeout(self._timeout):
            connection = await self._opened()
            try:
                await self._exchange(connection, [call.command for call in calls], answers)
            except ConnectionError:
                await self.drop()
                answers += await self._again(calls[len(answers) :])
            unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:
                again: list[Any] = []
                commands = [calls[n].whole for n in unknown]
                await self._exchange(await self._opened(), commands, again)
                for n, answer in zip(unknown, again, strict=True):
                    answers[n] = answer
        self.writes += 1
        self.seconds += time.perf_counter() - began

    async def _again(self, calls: Sequence[_Call]) -> list[Any]:
        """Return the answers to calls whose connection broke; RedisAway for those that may have
        been run, and must not be twice."""
        commands = [call.command for call in calls if not call.once]
        found: list[Any] = []
        if commands:
            await self._exchange(await self._opened(), commands, found)
        rest = iter(found)
        broken = "its connection broke before the answer came"
        return [RedisAway(broken) if call.once else next(rest) for call in calls]

    async def _opened(self) -> Connection:
        """Return the connection; another one, where it was closed while nothing used it."""
        if self._connection is not None and await self._connection.can_read():
            await self.drop()  # nothing is to be read between calls but its end
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    @staticmethod
    async def _exchange(
        connection: Connection, commands: Sequence[tuple[Any, ...]], answers: list[Any]
    ) -> None:
        """Send commands, and append their answers as they come."""
        await connection.send_packed_command(b"".join(map(hiredis.pack_command, commands)))
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)

    def _refused(self, call: _Call, error: ResponseError) -> None:
        """Fail a call that Redis has refused: it has no memory left, loads its data or is
        read-only.

        Spoiled data that a script found is a fault of its keys, and none of Redis.
        """
        fault = fault_of(error)
        _fail(call.answer, fault)
        if call.script is None or not _OF_KEYS.match(str(error)):
            self._on_fault(str(fault))

    def _take(self, most: int) -> list[_Call]:
        taken, self._waiting = self._waiting[:most], self._waiting[most:]
        return taken

    @staticmethod
    def _fail(calls: Sequence[_Call], fault: RedisAway) -> None:
        for call in calls:
            if not call.answer.done():
                _fail(call.answer, fault)


def fault_of(error: BaseException) -> RedisAway:
    """Return what users of Redis are told of an error of the library or the system."""
    if isinstance(error, RedisAway):
        return error
    if isinstance(error, ResponseError) and str(error).lower().startswith("unknown command"):
        return RedisAway("it does not know a command: it is a Sentinel, or too old")
    for kind, reason in _REASONS.items():
        # While it connects, the library may wrap what Redis or TLS said in another error.
        if any(isinstance(each, kind) for each in (error, error.__cause__, error.__context__)):
            return RedisAway(reason)
    return RedisAway("it cannot be reached")


def _fail(answer: "asyncio.Future[Any]", fault: RedisAway) -> None:
    """Fail a call; its error counts as seen, for nothing waits for what was only given back."""
    answer.set_exception(fault)
    answer.exception()
