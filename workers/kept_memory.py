"""Owns RAM that outlives a model's worker: the next worker of the model reuses its contents.

The gateway only holds it: it has no name, is on no disk, and is freed with the gateway. A worker
gets it once, before it is confined. Unused memory is freed when the machine runs short of RAM.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass

log = logging.getLogger(__name__)

RELIEVE_SECONDS = 2.0  #: between two calls of ``relieve``
_BLOCK = 512  #: bytes, the unit of ``st_blocks``
_LEAST_FREE = 0.1  #: of the machine's RAM, below which unused memory is freed


@dataclass(slots=True, eq=False)
class Piece:
    """Holds memory of one model, as an open file without a name."""

    model: str
    size: int
    fd: int

    @property
    def held(self) -> int:
        """Return the bytes of RAM that it takes: what was never written takes none."""
        return os.fstat(self.fd).st_blocks * _BLOCK


class KeptMemory:
    def __init__(self, total: int, free: Callable[[], int]) -> None:
        """``total``: the machine's RAM in bytes; ``free``: what of it could be had now."""
        self._total = total
        self._free = free
        self._unused: list[Piece] = []  #: the longest unused first

    def take(self, model: str, size: int) -> Piece | None:
        """Return memory of a model that no other worker has; None where the system has none."""
        for piece in self._unused:
            if piece.model == model and piece.size == size:
                self._unused.remove(piece)
                return piece
        self._drop([piece for piece in self._unused if piece.model == model])  # of another size
        if not hasattr(os, "memfd_create"):
            return None
        try:
            return Piece(model, size, _new(size))
        except OSError as error:
            log.warning("%s has no RAM for prefixes that outlives it: %s", model, error.strerror)
            return None

    def give_back(self, piece: Piece) -> None:
        """Keep the memory of a worker that has ended."""
        self._unused.append(piece)

    def unused_bytes(self) -> int:
        """Return the RAM that could be freed at once."""
        held = 0
        for piece in tuple(self._unused):  # asked for by another thread, too
            with contextlib.suppress(OSError):
                held += piece.held
        return held

    def relieve(self) -> None:
        """Free unused memory, the longest unused first, while the machine is short of RAM."""
        while self._unused and self._free() < _LEAST_FREE * self._total:
            self._drop(self._unused[:1])

    def keep_only(self, models: Collection[str]) -> None:
        """Free the memory of all models but these."""
        self._drop([piece for piece in self._unused if piece.model not in models])

    def close(self) -> None:
        self._drop(list(self._unused))

    def _drop(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._unused.remove(piece)
            with contextlib.suppress(OSError):
                os.close(piece.fd)


def _new(size: int) -> int:
    """Make a file in RAM whose size cannot be changed. Raises OSError."""
    fd = os.memfd_create("prefixes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd
