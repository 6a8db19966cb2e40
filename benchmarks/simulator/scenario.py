"""Describes the machine and the models of a simulation, as the settings that the server itself
reads."""

import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bitinglip.settings import Settings
from bitinglip.settings_loader import load_settings
from model_store.errors import UnknownModel
from model_store.manifest import Manifest

_SIZE = re.compile(r"(?:([0-9]+)x)?([0-9]+(?:\.[0-9]+)?)GB")
_LOAD_BYTES_PER_SECOND = 3e9
_LOAD_AT_LEAST = 1.0  #: seconds
_TOKENS_PER_SECOND = 50.0  #: of one request by itself
_SLOTS = 64


def sizes(text: str) -> list[int]:
    """Return sizes in bytes: ``8x80GB`` is eight times 80e9, ``10GB,20GB`` one of each. Raises
    ValueError."""
    found: list[int] = []
    for part in text.split(","):
        match = _SIZE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part!r} is no size; write 80GB, 8x80GB or 10GB,20GB")
        found += [int(float(match[2]) * 1e9)] * int(match[1] or 1)
    return found


def settings_for(
    devices: Sequence[int], models: int, model_sizes: Sequence[int], sets: Sequence[str] = ()
) -> Settings:
    """Return settings of fake devices, and fake models ``m0``, ``m1``, ... whose sizes take turns;
    then ``sets``, as after ``serve --set``. Raises SettingsError."""
    made_up = [{"name": f"{size / 1e9:g} GB", "memory_bytes": size} for size in devices]
    fakes = {
        f"m{number}": {
            "engine": "fake",
            "fake": {
                "memory_bytes": size,
                "load_seconds": _LOAD_AT_LEAST + size / _LOAD_BYTES_PER_SECOND,
                "tokens_per_second": _TOKENS_PER_SECOND,
                "batch_size": _SLOTS,
            },
        }
        for number in range(models)
        for size in [model_sizes[number % len(model_sizes)]]
    }
    base = [f"devices.fake={json.dumps(made_up)}", f"models={json.dumps(fakes)}"]
    # No file and no environment: the same words are the same simulation everywhere.
    nothing = Path("/dev/null")
    return load_settings(config=nothing, home=nothing, environ={}, sets=[*base, *sets])


@dataclass(frozen=True, slots=True)
class SimulatedStore:
    """Stands in for ``ModelStore``: every model of the settings is there, without files."""

    settings: Settings

    @property
    def listing(self) -> "SimulatedStore":
        """Return what knows the models without looking at files: itself."""
        return self

    @property
    def adapter_links(self) -> "SimulatedStore":
        """Return what links adapters for workers: itself, which has none."""
        return self

    def of_base(self, name: str) -> Path:
        return self.path(name)

    def all(self) -> dict[str, Manifest]:
        return {name: self.get(name) for name in self.names()}

    def find(self, name: str) -> Manifest | None:
        return self.get(name) if name in self.settings.models else None

    def names(self) -> list[str]:
        return list(self.settings.models)

    def get(self, name: str) -> Manifest:
        """Raises UnknownModel."""
        if name not in self.settings.models:
            raise UnknownModel("There is no such model.")
        own = self.settings.model(name)
        return Manifest(
            name=name,
            kind="text",
            engine=own.engine or "fake",
            weight_bytes=own.fake.memory_bytes,
            source="simulation",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )

    def path(self, name: str) -> Path:
        return Path("/nonexistent") / name

    def weights_path(self, name: str) -> Path:
        return self.path(name)

    async def record_use(self, _name: str, *, loaded: bool = False) -> None:
        """Record no use."""

    @asynccontextmanager
    async def loading(self, _names: Iterable[str]) -> AsyncIterator[None]:
        """Hold nothing: there are no files that could change."""
        yield
