"""Reads the driver's own reports of faults (Xid): what each means, and what it is blamed on. Pure.

The numbers and their meanings are NVIDIA's; the driver writes them into the kernel's log, too.
"""

from dataclasses import dataclass
from typing import Literal

#: program: what ran there did it, and died of it. contained: the card's memory did it, to one
#: program, and is well. card: no program is safe there. note: nothing follows now.
XidBlame = Literal["program", "contained", "card", "note"]


@dataclass(frozen=True, slots=True)
class Report:
    """Describes a fault that a card has reported."""

    device: str  #: its id
    number: int  #: the Xid


@dataclass(frozen=True, slots=True)
class Xid:
    """Tells what a number means."""

    blame: XidBlame
    meaning: str  #: as in "The card reports ..."
    advice: str | None = None  #: a sentence


_RESET = "Restart the machine or reset the card."
_REPLACE = f"{_RESET} If it comes again, the card is failing: have it replaced."
_LINK = "Restart the machine; look at the bridge or the cables between the cards."
_FIRMWARE = "Restart the machine, and install a newer driver if it comes again."
_POWER = "Restart the machine, or switch it off and on; look at power supply, heat, riser or cable."

_XIDS = {
    8: Xid("program", "a computation that did not end"),
    13: Xid("program", "a computation that failed"),
    31: Xid("program", "an access to memory that is not the program's"),
    32: Xid("program", "commands that it cannot read"),
    38: Xid("card", "that its firmware failed", _FIRMWARE),
    43: Xid("program", "that it has stopped a program after a fault"),
    45: Xid("program", "that it has cleaned up after a program that ended"),
    48: Xid("card", "memory that it could not correct (ECC)", _REPLACE),
    61: Xid("card", "that its controller has stopped", _FIRMWARE),
    62: Xid("card", "that its controller has stopped", _FIRMWARE),
    63: Xid("note", "that it puts spare memory in place of bad", "Restart it when convenient."),
    64: Xid("card", "that it has no spare memory left in place of bad", _REPLACE),
    68: Xid("program", "a video that failed"),
    69: Xid("program", "a computation that failed"),
    74: Xid("card", "a fault of its link to another card (NVLink)", _LINK),
    79: Xid("card", "that it fell off the bus", _POWER),
    92: Xid(
        "note", "that it corrects its memory often (ECC)", "Watch it: the card may be failing."
    ),
    94: Xid("contained", "memory that it could not correct, in one program (ECC)", _RESET),
    95: Xid("card", "memory that it could not correct, of all programs (ECC)", _REPLACE),
    109: Xid("program", "a program that did not give way to another"),
    119: Xid("card", "that its firmware does not answer (GSP)", _FIRMWARE),
    120: Xid("card", "that its firmware failed (GSP)", _FIRMWARE),
    121: Xid("note", "a fault of its link to the processor, corrected"),
    140: Xid("card", "memory that it could not correct (ECC)", _REPLACE),
    143: Xid("card", "that it does not start", _POWER),
    154: Xid("card", "that it must be recovered", _RESET),
}
_UNKNOWN = Xid("note", "a fault that this version does not know")


def meaning_of(number: int) -> Xid:
    return _XIDS.get(number, _UNKNOWN)


def sentence(number: int) -> str:
    """Tell the operator what a report means, and what to do."""
    found = meaning_of(number)
    told = f"The card reports {found.meaning}: Xid {number} in the kernel's log."
    return f"{told} {found.advice}" if found.advice else told
