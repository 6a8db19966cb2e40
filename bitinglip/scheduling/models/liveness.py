"""Tells whether a server whose cards are gone is to be restarted, as a container may want.

A card that has left a container, or fallen off the bus, does not come back to the process.
"""

from collections.abc import Iterable

from workers.devices import Device
from workers.devices.surroundings import LOST_RIGHTS


class CardLiveness:
    """Remembers which cards were well, and says when none of them is of use any more."""

    def __init__(self) -> None:
        self._were_well: set[str] = set()
        self.gone: str | None = None  #: why no card that was well can be used

    def update(self, devices: Iterable[Device]) -> None:
        """Take over the state of the devices; called after each look at them."""
        cards = [device for device in devices if device.kind != "cpu"]
        self._were_well |= {card.id for card in cards if card.condition.state == "well"}
        known = [card for card in cards if card.id in self._were_well]
        gone = bool(known) and all(map(_is_gone, known))
        self.gone = known[0].condition.reason if gone else None


def _is_gone(card: Device) -> bool:
    return card.condition.state == "lost" or card.condition.reason == LOST_RIGHTS
