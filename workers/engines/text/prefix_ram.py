"""Moves blocks of prefixes between the cache and RAM: those that leave it are found again there."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from workers import lent_memory
from workers.engines import torch_env
from workers.engines.text.kept_blocks import KeptBlocks
from workers.engines.torch_env import load_failed
from workers.protocol import Load

#: What of a load does not change what its cache means.
_HARMLESS = frozenset(
    {
        "reserves",
        "ram",
        "visible_devices",
        "device_weights",
        "even_split",
        "context_bytes",
        "max_context",
        "kv_cache_bytes",
        "max_batch",
        "threads",
        "image",
        "speech",
        "text",
        "warmup",
        "heartbeat_seconds",
        "fake",
    }
)


_AT_ONCE = 16  #: blocks that are copied together: the copies take memory
#: Blocks that are on their way from a card: steps give up a few at a time, and a wait for these is
#: one for the step that is computed.
_MOST_COMING = 64
_MOST_GOING = 4  #: copies of blocks that are on their way to a card

_Name = tuple[bytes, str]  #: of a block: the key of its prefix, and whose it is


class Cache(Protocol):
    """Copies blocks, as bytes of all layers."""

    block_bytes: int
    layout: str
    on_card: bool  #: it lies on one card, which copies while the host does other things

    def copy_out(self, blocks: Rows[int]) -> Tensor:
        """Return what blocks hold, [blocks, block_bytes] uint8 on the cache's device."""
        ...

    def copy_in(self, blocks: Rows[int], contents: Tensor) -> None:
        """Write what blocks are to hold; contents: [blocks, block_bytes] uint8 on the CPU.

        From pinned memory the copy is queued only.
        """
        ...


class PrefixRam:
    """Keeps what leaves a cache, and brings it back. Nothing waits for a card to copy it, unless
    more is on its way than may be."""

    def __init__(self, kept: KeptBlocks, cache: Cache) -> None:
        self._kept = kept
        self._cache = cache
        #: on their way from the card: when they have arrived, where, their keys and owners
        self._coming: deque[tuple[torch.cuda.Event, Tensor, list[_Name]]] = deque()
        self._going: deque[torch.cuda.Event] = deque()  #: when copies to the card are over

    def has(self, key: bytes) -> bool:
        return key in self._kept

    @property
    def room(self) -> int:
        """Return how many blocks can be kept."""
        return self._kept.slots

    @torch.inference_mode()
    def leave(self, blocks: Iterable[tuple[int, bytes, str]]) -> None:
        """Keep blocks, with their keys and owners, whose contents are about to be lost.

        Where memory does not suffice for that they are lost.
        """
        self._arrive()
        new = [each for each in blocks if not self._kept.touch(each[1])]
        try:
            for start in range(0, len(new), _AT_ONCE):
                self._send(new[start : start + _AT_ONCE])
        except Exception as error:
            if not torch_env.is_out_of_memory(error):
                raise

    def _send(self, blocks: list[tuple[int, bytes, str]]) -> None:
        contents = self._cache.copy_out([block for block, _, _ in blocks])
        names = [(key, owner) for _, key, owner in blocks]
        if not self._cache.on_card:
            self._keep(names, contents)
            return
        self._arrive(most=_MOST_COMING - len(names))
        there = _pinned(len(names), self._cache.block_bytes)
        there.copy_(contents, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._coming.append((event, there, names))

    @torch.inference_mode()
    def restore(self, blocks: Rows[int], keys: Rows[bytes]) -> int:
        """Write the contents of the first keys into blocks; return how many were still kept."""
        self._arrive()
        restored = 0
        try:
            while found := self._found(keys[restored : restored + _AT_ONCE]):
                self._bring(blocks[restored : restored + len(found)], found)
                restored += len(found)
        except Exception as error:
            if not torch_env.is_out_of_memory(error):
                raise
        return restored

    def _bring(self, blocks: Rows[int], found: list[Tensor]) -> None:
        """Write contents into blocks; a card fetches them behind what is queued there."""
        if not self._cache.on_card:
            self._cache.copy_in(blocks, torch.stack(found))
            return
        if len(self._going) >= _MOST_GOING:
            self._going.popleft().synchronize()
        together = _pinned(len(found), self._cache.block_bytes)
        self._cache.copy_in(blocks, torch.stack(found, out=together))
        event = torch.cuda.Event()
        event.record()
        self._going.append(event)

    def _found(self, keys: Iterable[bytes]) -> list[Tensor]:
        """Return the contents of the first keys, up to one that is not kept."""
        found: list[Tensor] = []
        for key in keys:
            contents = self._kept.get(key)
            if contents is None:
                break
            found.append(contents)
        return found

    def close(self) -> None:
        """Wait for what is on its way."""
        self._arrive(most=0)

    def _arrive(self, *, most: int = _MOST_COMING) -> None:
        """Keep what has arrived, and wait for the first while more blocks than ``most`` come."""
        while self._coming and (self._blocks_coming > most or self._coming[0][0].query()):
            event, contents, names = self._coming.popleft()
            event.synchronize()
            self._keep(names, contents)

    @property
    def _blocks_coming(self) -> int:
        return sum(len(names) for _, _, names in self._coming)

    def _keep(self, names: list[_Name], contents: Tensor) -> None:
        for (key, owner), each in zip(names, contents, strict=True):
            self._kept.put(key, each, owner)


def _pinned(blocks: int, block_bytes: int) -> Tensor:
    """Return memory that a card reads and writes by itself. torch gives it to nobody else before
    the copies from it and to it are over."""
    return torch.empty(blocks, block_bytes, dtype=torch.uint8, pin_memory=True)


def open_prefix_ram(spec: Load, cache: Cache | None, why: str | None) -> PrefixRam | None:
    """Return where prefixes are kept that leave a cache, if the load asks for it.

    ``why``: why the model has no cache of blocks. Raises Refused if prefixes cannot be kept.
    """
    size = 0 if spec.text is None else spec.text.prefix_ram_bytes
    if not size:
        return None
    if cache is None:
        raise load_failed(f"text.prefix_ram_bytes is set, which is not for this model: {why}.")
    try:
        memory = lent_memory.memory(size)
    except (OSError, ValueError):
        raise load_failed(f"text.prefix_ram_bytes is {size}, which the system has not.") from None
    try:
        return PrefixRam(KeptBlocks(memory, cache.block_bytes, _mark(spec, cache.layout)), cache)
    except ValueError:
        raise load_failed(
            f"text.prefix_ram_bytes is {size}; a block of this model's cache has "
            f"{cache.block_bytes} bytes."
        ) from None


def _mark(spec: Load, layout: str) -> bytes:
    """Return a digest of all that decides what a block of the cache means."""
    settings = {
        name: value for name, value in msgspec.structs.asdict(spec).items() if name not in _HARMLESS
    }
    files = [
        (name, found.st_size, found.st_mtime_ns)
        for folder in (spec.path, spec.adapter)
        if folder is not None
        for name in sorted(os.listdir(folder))
        for found in (Path(folder, name).stat(),)
    ]
    return hashlib.blake2b(repr((settings, files, layout)).encode(), digest_size=32).digest()
