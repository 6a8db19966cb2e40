"""Follows the days and months of the calendar, in UTC, as the clock passes through them. Pure."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_MONTH = len("2026-11")
#: seconds that a clock may be set back to correct it, without the day before coming back
_CORRECTION = 3600.0


class Day(NamedTuple):
    """Holds the times of one day, as Unix times in seconds."""

    name: str  #: 2026-11-27
    begins: float
    ends: float
    month_ends: float

    @property
    def month(self) -> str:
        return self.name[:_MONTH]

    def holds(self, moment: float) -> bool:
        """Return whether it is this day at a moment; a small step back into the last one is."""
        return self.begins - _CORRECTION <= moment < self.ends


def day_of(moment: float) -> Day:
    begins = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = begins.replace(day=1)
    return Day(
        name=begins.date().isoformat(),
        begins=begins.timestamp(),
        ends=(begins + timedelta(days=1)).timestamp(),
        month_ends=(month + timedelta(days=32)).replace(day=1).timestamp(),
    )
