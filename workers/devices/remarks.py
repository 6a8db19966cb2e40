"""Says what is special of a card, and no fault of it. Pure."""

from workers.devices.nvml import Card

_ASLEEP = "sleeps while no model is loaded"
_UNIFIED = "shares its memory with the processor"
_EXCLUSIVE = "takes one worker at a time (its compute mode is exclusive)"
_IN_WSL = "is told of by Windows, which counts its own use and names no processes"
_AT_FIRST_USE = "has code built for it at its first use, which takes minutes (PTX)"
_REPORTS_NOTHING = "reports no faults by itself (Xid)"
_REPAIRS = {
    "none": None,
    "pending": "puts spare memory in place of bad at its next restart, which should be soon",
    "failed": "has no spare memory left in place of bad, and should be replaced",
}


def remark(
    card: Card, *, asleep: bool, in_wsl: bool, needs_building: bool, reports: bool
) -> str | None:
    """Return the words, to be read after "it"; None if nothing is special."""
    told = [
        _ASLEEP if asleep else None,
        _UNIFIED if card.unified else None,
        _EXCLUSIVE if card.exclusive else None,
        _IN_WSL if in_wsl else None,
        _AT_FIRST_USE if needs_building else None,
        _REPAIRS[card.repairs],
        _lanes(card),
        None if reports else _REPORTS_NOTHING,
    ]
    return " and ".join(filter(None, told)) or None


def _lanes(card: Card) -> str | None:
    """Say that a card is linked by fewer lanes than it has; their number does not sleep."""
    if card.lanes is None or card.lanes[0] >= card.lanes[1]:
        return None
    now, most = card.lanes
    return f"has {now} of its {most} PCIe lanes in this slot, which slows loads and offloading"
