"""Encodes and decodes messages: what goes down the pipe to a worker, and what comes up from it.

A frame is its length, big-endian, and one msgpack array of messages. Both sides decode against the
schemas of workers.protocol, so a worker that writes nonsense causes a :class:`BadFrame`, never code
execution.
"""

import os
import struct
from collections.abc import Iterator, Sequence

import msgspec

from workers.protocol import Command, Event, Failed, OfJob

MAX_FRAME_BYTES = 16 << 20  #: of one event; a worker that claims more is broken
_FULL = 1 << 20  #: a frame of events is written once it has so many bytes
_MOST_EXPLAINED = 200  #: characters of a decoder's error, which may quote the worker
_LENGTH = struct.Struct("!I")
_COMMANDS_LENGTH = struct.Struct("!Q")


class BadFrame(Exception):
    """A worker wrote something that this protocol does not allow."""


_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[list[Command]] = msgspec.msgpack.Decoder(list[Command])
_command: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_split: msgspec.msgpack.Decoder[list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw])
_events: msgspec.msgpack.Decoder[list[Event]] = msgspec.msgpack.Decoder(list[Event])


# ---- down to a worker ----------------------------------------------------------------------------


def encode_commands(commands: Sequence[Command]) -> bytes:
    return _encoder.encode(commands)


def decode_commands(data: bytes) -> list[Command]:
    return _commands.decode(data)


def split_commands(data: bytes) -> list[msgspec.Raw]:
    """Return the commands, each as it is encoded: a thirtieth of the work of decoding them."""
    return _split.decode(data)


def decode_command(command: msgspec.Raw) -> Command:
    """Decode one of the commands that were split."""
    return _command.decode(command)


def join_commands(commands: Sequence[msgspec.Raw]) -> bytes:
    """Encode commands together that were split."""
    return _encoder.encode(commands)


def command_frame(data: bytes) -> bytes:
    """Return encoded commands as ``read_commands`` expects them."""
    return _COMMANDS_LENGTH.pack(len(data)) + data


def read_commands(fd: int) -> list[Command]:
    """Wait for the next commands; none once the gateway has closed the pipe."""
    head = _read(fd, _COMMANDS_LENGTH.size)
    if head is None:
        return []
    (length,) = _COMMANDS_LENGTH.unpack(head)
    data = _read(fd, length)
    return [] if data is None else decode_commands(data)


def _read(fd: int, size: int) -> bytes | None:
    """Read so many bytes; None if the pipe ends before."""
    data = os.read(fd, size)
    if len(data) == size:
        return data
    parts = bytearray(data)
    while data and len(parts) < size:
        data = os.read(fd, size - len(parts))
        parts += data
    return bytes(parts) if len(parts) == size else None


# ---- up to the gateway ---------------------------------------------------------------------------


def encode_frame(events: Sequence[Event]) -> bytes:
    return _framed(_encoder.encode(events))


def checked_frame(events: Sequence[Event]) -> bytes:
    """Return the frame of events that hold what strangers have said.

    Raises BadFrame for what the other side would not take; then nothing of it has been sent.
    """
    try:
        payload = _encoder.encode(events)
        _events.decode(payload)
    except Exception as error:  # surrogates, numbers that are too large, what the schemas refuse
        raise BadFrame(_explain(error)) from error
    if len(payload) > MAX_FRAME_BYTES:
        raise BadFrame(f"{len(payload)} bytes are over the limit of {MAX_FRAME_BYTES}")
    return _framed(payload)


def write_events(fd: int, events: Sequence[Event]) -> list[str]:
    """Write events in as many frames as they need; blocks while the pipe is full, which is the
    back-pressure.

    Returns the ids of jobs with an event that no frame may hold. It is written as the job's
    failure, and what follows about that job is left out.
    """
    payload = _encoder.encode(events)
    if len(payload) <= _FULL:
        _write(fd, _framed(payload))
        return []
    failed: dict[str, None] = {}
    for payload in _packed(events, failed):
        _write(fd, _framed(payload))
    return list(failed)


def _packed(events: Sequence[Event], failed: dict[str, None]) -> Iterator[bytes]:
    batch: list[msgspec.Raw] = []
    size = 0
    for event in events:
        if failed and getattr(event, "id", None) in failed:
            continue
        data = _encoder.encode(event)
        if len(data) + 1 > MAX_FRAME_BYTES:  # 1: the array around it
            failure = _too_large(event)
            failed[failure.id] = None
            data = _encoder.encode(failure)
        if batch and size + len(data) > _FULL:
            yield _encoder.encode(batch)
            batch, size = [], 0
        batch.append(msgspec.Raw(data))
        size += len(data)
    if batch:
        yield _encoder.encode(batch)


def _too_large(event: Event) -> Failed:
    if not isinstance(event, OfJob):
        raise ValueError(f"a message of the type {type(event).__name__} is too large to be sent")
    return Failed(
        id=event.id,
        code="INVALID_REQUEST",
        message="The answer is too large to be sent; ask for fewer tokens, or for less about each.",
        prompt_tokens=getattr(event, "prompt_tokens", 0),
        completion_tokens=getattr(event, "completion_tokens", 0),
    )


def _framed(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class FrameSplitter:
    """Cuts the bytes of a pipe into whole frames, to be passed on as they are."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return all frames that ``data`` completes, their lengths included. Raises BadFrame."""
        self._buffer += data
        frames: list[bytes] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[:end]))
            del self._buffer[:end]
        return frames

    def clear(self) -> None:
        """Forget the beginning of a frame that is held."""
        self._buffer.clear()


class FrameReader:
    """Turns the bytes of a non-blocking pipe into events; keeps what is not yet a whole frame."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()

    def feed(self, data: bytes) -> list[Event]:
        """Return the events of all frames that ``data`` completes.

        Raises :class:`BadFrame`, and nothing else; then it holds nothing any more.
        """
        try:
            events: list[Event] = []
            for frame in self._splitter.feed(data):
                events += _events.decode(memoryview(frame)[_LENGTH.size :])
            return events
        except BadFrame:
            self._splitter.clear()
            raise
        except Exception as error:  # nonsense has many names: RecursionError, UnicodeDecodeError...
            self._splitter.clear()
            raise BadFrame(f"a frame does not decode: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    text = str(error)[:_MOST_EXPLAINED]
    return "".join(each if each.isprintable() else "?" for each in text) or type(error).__name__
