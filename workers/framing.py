"""Messages as bytes, both ways.

Commands go down a ``multiprocessing`` queue as msgpack arrays; events come up a pipe as frames: a
4-byte big-endian length, then one msgpack array of events. Both decode against the schemas of
workers.protocol, so a worker that writes nonsense causes a :class:`BadFrame`, never code execution.
"""

import os
import struct

import msgspec

from workers.protocol import Command, Event

MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct("!I")


class BadFrame(Exception):
    """A worker wrote something that is not a frame of this protocol."""


_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[list[Command]] = msgspec.msgpack.Decoder(list[Command])
_events: msgspec.msgpack.Decoder[list[Event]] = msgspec.msgpack.Decoder(list[Event])


def encode_commands(commands: list[Command]) -> bytes:
    return _encoder.encode(commands)


def decode_commands(data: bytes) -> list[Command]:
    return _commands.decode(data)


def encode_frame(events: list[Event]) -> bytes:
    payload = _encoder.encode(events)
    return _LENGTH.pack(len(payload)) + payload


def write_frame(fd: int, events: list[Event]) -> None:
    """Write one frame whole; blocks while the pipe is full, which is the back-pressure."""
    view = memoryview(encode_frame(events))
    while view:
        view = view[os.write(fd, view) :]


class FrameReader:
    """Turns the bytes of a non-blocking pipe into events; keeps what is not yet a whole frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """The events of all frames that ``data`` completes. Raises :class:`BadFrame`."""
        self._buffer += data
        events: list[Event] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                events += _events.decode(self._buffer[_LENGTH.size : end])
            except msgspec.DecodeError as error:
                raise BadFrame(f"a frame does not decode: {error}") from error
            del self._buffer[:end]
        return events
