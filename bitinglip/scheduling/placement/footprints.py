"""Footprints hold the memory that models take: estimated, then measured, kept over restarts."""

import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import msgspec
from sqlmodel import select

from bitinglip.db.database import Database
from bitinglip.db.tables import LearnedFootprint
from bitinglip.scheduling.placement.estimate import Footprint, LoadConfig, estimate
from model_store.manifest import Manifest

_MARGIN = 1.02  #: above the highest that was seen
_SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """A model will take so much memory; it is estimated or measured."""

    bytes: int
    load_seconds: float | None
    measured: bool
    footprint: Footprint  #: the estimate, by what it is for


@dataclass(slots=True)
class _Learned:
    model: str
    memory_bytes: int = 0  #: the highest that was seen; 0: nothing yet
    floor_bytes: int = 0  #: this much was not enough
    load_seconds: float | None = None
    loads: int = 0
    changed: bool = False


class Footprints:
    """Holds footprints in memory; ``flush`` writes changes to the database."""

    def __init__(self, db: Database | None = None) -> None:
        self._db = db
        self._learned: dict[str, _Learned] = {}

    @classmethod
    async def open(cls, db: Database) -> Self:
        footprints = cls(db)
        async with db.read() as session:
            for row in await session.scalars(select(LearnedFootprint)):
                footprints._learned[row.id] = _Learned(
                    row.model, row.memory_bytes, row.floor_bytes, row.load_seconds, row.loads
                )
        return footprints

    def need(self, manifest: Manifest, load_config: LoadConfig) -> MemoryEstimate:
        """Return the memory to reserve, without asking the database."""
        estimated = estimate(manifest, load_config)
        found = self._learned.get(_key(manifest, load_config))
        if found is None:
            return MemoryEstimate(estimated.total, None, False, estimated)
        measured = int(found.memory_bytes * _MARGIN)
        size = measured or estimated.total
        return MemoryEstimate(
            max(size, found.floor_bytes), found.load_seconds, measured > 0, estimated
        )

    def observe(
        self,
        manifest: Manifest,
        load_config: LoadConfig,
        *,
        memory_bytes: int,
        load_seconds: float | None = None,
    ) -> None:
        """Learn the memory of a loaded model, and its load time if it was just loaded."""
        if load_config.claimed_bytes is not None:
            return  # its memory is a setting
        found = self._of(manifest, load_config)
        # Memory of the cache is touched only as it fills up, so less than that tells nothing.
        least = estimate(manifest, load_config).cache
        if memory_bytes > max(found.memory_bytes, least):
            found.memory_bytes, found.changed = memory_bytes, True
        if load_seconds is not None:
            old = found.load_seconds
            found.load_seconds = (
                load_seconds if old is None else old + _SMOOTHING * (load_seconds - old)
            )
            found.loads += 1
            found.changed = True

    def raise_minimum(self, manifest: Manifest, load_config: LoadConfig, at_least: int) -> None:
        """Plan with more memory the next time: the model ran out of it."""
        if load_config.claimed_bytes is None:
            found = self._of(manifest, load_config)
            found.floor_bytes, found.changed = max(found.floor_bytes, at_least), True

    async def flush(self) -> None:
        """Write what has changed. Raises DiskFull or DatabaseUnavailable; then it is kept."""
        if self._db is None or not any(found.changed for found in self._learned.values()):
            return
        changed = {key: found for key, found in self._learned.items() if found.changed}
        async with self._db.write() as session:
            for key, found in changed.items():
                await session.merge(_row(key, found))
        for found in changed.values():
            found.changed = False

    def _of(self, manifest: Manifest, load_config: LoadConfig) -> _Learned:
        return self._learned.setdefault(_key(manifest, load_config), _Learned(manifest.name))


def _key(manifest: Manifest, load_config: LoadConfig) -> str:
    """Return the same key for the same files under the same settings on the same kind of device."""
    config = dataclasses.asdict(load_config)
    del config["context_bytes"]  # no setting: what is learned stays when it is measured
    del config["lora_numbers"]  # nor this: LoRAs come and go
    facts = (manifest.name, [f.sha256 for f in manifest.files], tuple(config.values()))
    return hashlib.blake2b(msgspec.json.encode(facts), digest_size=16).hexdigest()


def _row(key: str, found: _Learned) -> LearnedFootprint:
    return LearnedFootprint(
        id=key,
        model=found.model,
        memory_bytes=found.memory_bytes,
        floor_bytes=found.floor_bytes,
        load_seconds=found.load_seconds,
        loads=found.loads,
        updated_at=datetime.now(UTC),
    )
