"""Memory that ended workers held is watched until the cards have it back.

The driver takes a process's memory down after its end, within milliseconds or seconds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

_PATIENCE = 5.0  #: seconds that a load waits for memory
_RECENT = 20.0  #: seconds after which memory that has not come back is another program's
_ENOUGH = 0.8  #: of what a worker held: the rest may be others' doing


@dataclass(slots=True)
class _Return:
    lowest: int  #: bytes used on the device once all has come back
    held: int
    until: float  #: when loads stop waiting for it
    forgotten: float


class MemoryReturns:
    """Knows how much memory is to come back, by device. Pure; the clock is the caller's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expected: dict[str, _Return] = {}

    def expect(self, device: str, used: int, held: int) -> None:
        """Expect what a worker held on a device, whose use before its end was ``used``."""
        now = self._clock()
        before = self._expected.get(device)
        lowest = used if before is None else min(used, before.lowest)
        held_before = 0 if before is None else before.held
        if held > 0:
            self._expected[device] = _Return(
                max(0, lowest - held), held + held_before, now + _PATIENCE, now + _RECENT
            )

    def outstanding(self, device: str, used: int) -> int:
        """Return the bytes of a device's use that are still to come back, by a new look at it."""
        expected = self._expected.get(device)
        if expected is None:
            return 0
        left = min(expected.held, max(0, used - expected.lowest))
        now = self._clock()
        if left <= (1 - _ENOUGH) * expected.held or now >= expected.forgotten:
            del self._expected[device]
            return 0
        return left if now < expected.until else 0

    def awaited(self, devices: Iterable[str]) -> bool:
        """Return True if a load there should wait."""
        now = self._clock()
        found = (self._expected.get(device) for device in devices)
        return any(each is not None and now < each.until for each in found)

    def wait_again(self, devices: Iterable[str]) -> bool:
        """Wait as long once more where memory has not come back; False if all of it has."""
        late = [each for device in devices if (each := self._expected.get(device))]
        for expected in late:
            expected.until = self._clock() + _PATIENCE
            expected.forgotten = expected.until + _RECENT
        return bool(late)
