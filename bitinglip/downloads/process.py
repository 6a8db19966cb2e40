"""Runs the program that pulls, one process for each download: starts it, reads it, ends it."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping

import msgspec
import structlog

from bitinglip.telemetry.redaction import mask
from model_store.hub.messages import LINE_BYTES, Limit, Message, Order, decode, encode
from workers.output import Output, last_bytes

log = structlog.get_logger(__name__)

#: Only root may read its memory, which holds the token.
_PROGRAM = """
import sys
sys.path[:] = {path!r}
from contextlib import suppress
from workers.confinement.limits import not_dumpable
with suppress(OSError):
    not_dumpable()
from model_store.hub.puller import main
sys.exit(main())
"""
#: what the process gets of the server's environment, beside what has one of these beginnings
_INHERITED = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"}
)
_PREFIXES = ("LC_", "PYTHON")
#: what it is told with its order, since values may hold passwords: how the hub is reached
_NETWORK = frozenset(
    {
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "HF_ENDPOINT",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_OFFLINE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
)


_READ_BYTES = 1 << 16
_MOST_SAID = 200  #: characters of its last line that a message holds
_PATH = re.compile(r"(?<![\w.:/])/[^\s'\",)]+")


def network_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say how the hub is reached, in either case of letters."""
    return {name: value for name, value in environ.items() if name.upper() in _NETWORK}


class PullProcess:
    """Runs a process that pulls, in a session of its own, so that all it starts ends with it."""

    def __init__(self, process: "subprocess.Popen[bytes]", download_id: str) -> None:
        self._process = process
        self._output = Output(lambda line: log.debug("puller", download=download_id, line=line))
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)

    @classmethod
    async def start(cls, order: Order, download_id: str) -> "PullProcess":
        """Start it with its order. Raises OSError."""
        return cls(await asyncio.to_thread(_start, order, download_id), download_id)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def messages(self) -> AsyncGenerator[Message]:
        """Yield its messages until it ends. Raises msgspec.MsgspecError for what is none."""
        loop = asyncio.get_running_loop()
        assert self._process.stdout is not None
        reading = _Reading(self._process.stdout.fileno(), loop)
        errors = self._errors_fd()
        loop.add_reader(errors, self._read_errors, errors)
        try:
            while line := await self._line(reading.stream):
                yield decode(line)
        finally:
            loop.remove_reader(errors)
            reading.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError as error:
            raise msgspec.DecodeError("a message is too long") from error

    def limit(self, bytes_per_second: int) -> None:
        """Change its bandwidth."""
        stdin = self._process.stdin
        assert stdin is not None
        # A process that reads nothing, because it has ended or is stopped, needs no limit.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(stdin.fileno(), encode(Limit(bytes_per_second)))

    def kill(self) -> None:
        """End it and all that it has started; does nothing if it has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> int:
        """End it, wait for that, and free its pipes; return its exit code."""
        self.kill()
        code = await asyncio.to_thread(self._process.wait)
        for data in last_bytes(self._errors_fd()):
            self._output.feed(data)
        self._output.end()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    @property
    def last_lines(self) -> list[str]:
        """Return the last lines that it wrote to its standard error."""
        return [mask(line) for line in self._output.tail]

    def ending(self, code: int) -> str:
        """Say how it ended without a message, by its exit code; no path is in the text."""
        if code < 0:
            name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
            how = f"was ended from outside ({name})"
            if -code == signal.SIGKILL:
                how += ", as the system does where memory is short"
        else:
            how = f"ended with exit code {code} and without a result"
        said = _PATH.sub("...", self.last_lines[-1])[:_MOST_SAID] if self.last_lines else ""
        return f"{how}{f'; it said last: {said}' if said else ''}"

    def _errors_fd(self) -> int:
        assert self._process.stderr is not None
        return self._process.stderr.fileno()

    def _read_errors(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(fd, _READ_BYTES):
                self._output.feed(data)
            else:
                asyncio.get_running_loop().remove_reader(fd)


class _Reading(asyncio.ReadTransport):
    """Reads a pipe into a stream. Only its file object closes the descriptor.

    uvloop's transport of a pipe closes the descriptor and then the file object, too: when another
    thread has opened a file in between, it is that one which is closed.
    """

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        os.set_blocking(fd, False)
        self._fd, self._loop = fd, loop
        self.stream = asyncio.StreamReader(limit=LINE_BYTES)
        self.stream.set_transport(self)
        self.resume_reading()

    def resume_reading(self) -> None:
        self._loop.add_reader(self._fd, self._read)

    def pause_reading(self) -> None:
        self._loop.remove_reader(self._fd)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self._fd, _READ_BYTES):
                self.stream.feed_data(data)
            else:
                self.close()
                self.stream.feed_eof()


def _start(order: Order, download_id: str) -> "subprocess.Popen[bytes]":
    path = [entry or os.getcwd() for entry in sys.path]
    process = subprocess.Popen(
        # The title tells processes apart; the order goes through a pipe of its own.
        [sys.executable, "-c", _PROGRAM.format(path=path), f"bitinglip download {download_id}"],
        env={
            name: value
            for name, value in os.environ.items()
            if name in _INHERITED or name.startswith(_PREFIXES)
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, which is noticed where it is read
        process.stdin.write(encode(order))
        process.stdin.flush()
    os.set_blocking(process.stdin.fileno(), False)
    return process
