from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    id: str
    name: str
    kind: str
    memory_bytes: int
    free_bytes: int
    evictable: tuple[tuple[str, int], ...] = ()
