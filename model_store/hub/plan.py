"""Describes what a pull will do, before it does it."""

from dataclasses import dataclass

from model_store.manifest import Manifest


@dataclass(frozen=True)
class PlannedFile:
    """Describes a file that is wanted, and how much of it the store has."""

    path: str
    size: int
    there: int  #: bytes that are not fetched again


@dataclass(frozen=True)
class Plan:
    """Tells what a pull will fetch, and where it will put it."""

    repo: str  #: as the hub calls it now
    revision: str  #: the commit
    name: str  #: of the model in this store
    files: tuple[PlannedFile, ...]
    total_bytes: int
    missing_bytes: int
    free_bytes: int  #: of the disk, without what is always left free
    kind: str | None  #: None: chosen by --include, and not a model by itself
    gated: bool
    notes: tuple[str, ...] = ()  #: what a person should know: another name, a refused token
    expected: Manifest | None = None  #: what decides the memory that it takes; None: not known

    @property
    def fits(self) -> bool:
        """Return whether the disk has room for what is missing."""
        return self.missing_bytes <= self.free_bytes


@dataclass(frozen=True)
class Change:
    """Tells what an update of a model brings."""

    name: str
    repo: str
    old_revision: str | None
    new_revision: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    missing_bytes: int  #: that have to be fetched

    def __bool__(self) -> bool:
        """Return whether the hub has another commit than the store."""
        return self.old_revision != self.new_revision

    @property
    def files(self) -> dict[str, list[str]]:
        """Return the paths by what happens to them, without what happens to none."""
        found = {"added": self.added, "changed": self.changed, "removed": self.removed}
        return {what: list(paths) for what, paths in found.items() if paths}
