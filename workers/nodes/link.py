"""Carries frames between a gateway and an agent: a kind, a length, and so many bytes.

What a frame may hold is bounded by its kind before a byte of it is kept.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from collections.abc import Container
from typing import TypeVar

import msgspec

from workers.framing import BadFrame
from workers.nodes.handshake import SECONDS, NotTrusted, client_context, prove_to_agent
from workers.nodes.messages import FROM_AGENT, MOST_BYTES, Kind

_HEAD = struct.Struct("!BI")
_TURN = 64  #: frames, after which others on the event loop have theirs
AT_ONCE = 256 << 10  #: bytes that are encrypted in one turn of the event loop
_encoder = msgspec.msgpack.Encoder()
#: The system finds a machine that is gone within about two minutes; a gateway misses heartbeats
#: long before. The time must be longer than a process may stand still: its system goes on to
#: answer, but a connection whose buffers are full ends after it nonetheless.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 120_000}

Message = TypeVar("Message")


class LinkLost(Exception):
    """The connection has ended; the message says how."""


class Link:
    """Sends and receives frames on an open connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        takes: Container[Kind] = frozenset(Kind),
    ) -> None:
        """``takes``: the kinds of frames that the other side may send."""
        self._takes = takes
        self._received = 0
        self._behind: list[bytes] | None = None  #: frames that wait for the end of a long one
        self._reader = reader
        self._writer = writer

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame as soon as the connection takes it; nothing if it has ended."""
        frame = _HEAD.pack(kind, len(payload)) + payload
        if self._behind is not None:
            self._behind.append(frame)
        elif not self._writer.is_closing():
            self._writer.write(frame)

    async def send_long(self, kind: Kind, payload: bytes) -> None:
        """Send a frame a piece at a time, between which others on the event loop have their turns.

        Frames that are sent meanwhile follow it. Raises LinkLost.
        """
        if self._writer.is_closing():
            raise LinkLost("the connection is closed")
        assert self._behind is None, "one long frame at a time"
        self._behind = []
        try:
            self._writer.write(_HEAD.pack(kind, len(payload)))
            for at in range(0, len(payload), AT_ONCE):
                self._writer.write(memoryview(payload)[at : at + AT_ONCE])
                await self.drain()
                await asyncio.sleep(0)
        except BaseException:  # half a frame has gone, and nothing can follow it
            self._behind = None
            self.abort()
            raise
        behind, self._behind = self._behind, None
        if behind and not self._writer.is_closing():
            self._writer.writelines(behind)

    def tell(self, kind: Kind, message: object) -> None:
        """Send a message as a frame."""
        self.send(kind, _encoder.encode(message))

    async def drain(self) -> None:
        """Wait until what was sent has left this process, or nearly. Raises LinkLost."""
        try:
            await self._writer.drain()
        except (OSError, ssl.SSLError) as error:
            raise LinkLost(_why(error)) from error

    async def receive(self) -> tuple[Kind, bytes]:
        """Wait for the next frame. Raises LinkLost at the end, BadFrame for one that is too long or
        of no kind."""
        self._received += 1
        if not self._received % _TURN:  # what is there already is read without a pause
            await asyncio.sleep(0)
        try:
            number, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            kind = _kind(number)
            if kind not in self._takes:
                raise BadFrame(f"a frame {kind.name} is not this side's to get")
            if length > MOST_BYTES[kind]:
                raise BadFrame(f"a frame {kind.name} of {length} bytes is over its limit")
            return kind, await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise LinkLost("the connection was closed") from error
        except (OSError, ssl.SSLError) as error:
            raise LinkLost(_why(error)) from error

    def close(self) -> None:
        """Close it once what was sent has left; may be called twice."""
        self._writer.close()

    def abort(self) -> None:
        """Close it at once."""
        self._writer.transport.abort()


def decode(payload: bytes, message: type[Message]) -> Message:
    """Return the message of a frame. Raises BadFrame."""
    try:
        return msgspec.msgpack.decode(payload, type=message)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadFrame(f"no {message.__name__}: {str(error)[:200]}") from error


async def connect(host: str, port: int, secret: str) -> Link:
    """Connect to an agent. Raises LinkLost or NotTrusted, within a bounded time."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=client_context())
            keep_alive(writer)
            await prove_to_agent(reader, writer, secret)
            link, writer = Link(reader, writer, FROM_AGENT), None
            return link
    except TimeoutError as error:
        raise LinkLost(f"no answer within {SECONDS:g} s") from error
    except (OSError, ssl.SSLError) as error:
        raise LinkLost(_why(error)) from error
    finally:
        if writer is not None:
            writer.transport.abort()


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the system find out when the other machine is gone."""
    sock: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            for name, value in _KEEP_ALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def set_done(future: "asyncio.Future[None]") -> None:
    """Complete a future, unless it is done already."""
    if not future.done():
        future.set_result(None)


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise BadFrame(f"a frame of the unknown kind {number}") from None


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


__all__ = ["Link", "LinkLost", "NotTrusted", "connect", "decode", "keep_alive", "set_done"]
