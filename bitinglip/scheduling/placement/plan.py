"""Declares what the planner is asked for and what it answers. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Demand:
    """A model should have one more replica."""

    model: str
    index: int  #: of the replica
    needs: Mapping[str, int]  #: device kind -> bytes; kinds that it may not go to are absent
    since: float  #: when its oldest request began to wait
    urgent: bool = True  #: requests wait for it; otherwise it takes free memory only
    level: int = 0
    spread: int = 1  #: over how many devices of a kind it may be split
    ram: int = 0  #: bytes of RAM that its load takes beside the device
    lasting_ram: int = 0  #: what of that it keeps once it is loaded
    each_device: int = 0  #: bytes that it takes of each further device that it is split over
    file_bytes: int = 0  #: of the files that its load reads
    weights_of: str = ""  #: the model whose files it loads: of an adapter its base; empty: itself

    @property
    def files(self) -> str:
        """Return the model whose files its node has to have."""
        return self.weights_of or self.model


@dataclass(frozen=True, slots=True)
class Load:
    """A replica is to be loaded onto these devices."""

    model: str
    index: int
    devices: Mapping[str, int]  #: device id -> bytes to reserve
    ram: int = 0  #: bytes of RAM to reserve while it loads


@dataclass(frozen=True, slots=True)
class Evict:
    """A replica is to finish what it runs and then stop."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """This model does not fit: ``forever``, or while others hold their memory."""

    model: str
    forever: bool


@dataclass(slots=True)
class Plan:
    """Holds what the planner decided to do."""

    loads: list[Load] = field(default_factory=list)
    evictions: list[Evict] = field(default_factory=list)
    refusals: list[Refuse] = field(default_factory=list)
    waiting: list[Load] = field(default_factory=list)  #: loads whose memory is being freed
    replan_at: float | None = None  #: when time alone will have changed the answer
    #: by device: bytes that other gateways are asked to free of their idle models
    wishes: dict[str, int] = field(default_factory=dict)
    gives: bool = False  #: it evicts models for other gateways
    missing_bytes: int = 0  #: bytes that are missing for models with waiting requests
