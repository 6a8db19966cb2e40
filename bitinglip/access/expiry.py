"""A key expires after a span such as ``30d``, or at a moment in ISO 8601."""

import re
from datetime import UTC, datetime, timedelta

from bitinglip.errors import InvalidRequest

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)


LONGEST_GRACE = timedelta(days=90)


def parse_grace(text: str) -> timedelta:
    """Parse the time that a rotated key stays good for; ``0s`` is none. Raises InvalidRequest."""
    try:
        if (match := _SPAN.fullmatch(text)) and (grace := _span(match)) <= LONGEST_GRACE:
            return grace
    except OverflowError:
        pass
    raise InvalidRequest("A grace is a span such as 24h, at most 90d; 0s is none.", param="grace")


def _span(match: re.Match[str]) -> timedelta:
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def parse_expiry(text: str) -> datetime:
    """Parse a moment as UTC, which is also the zone of one without any. Raises for the past."""
    try:
        if match := _SPAN.fullmatch(text):
            moment = datetime.now(UTC) + _span(match)
        else:
            moment = datetime.fromisoformat(text)
        return check_expiry(moment)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            "An expiry is a span such as 30d or 12h, or a time such as 2030-01-31T12:00:00Z.",
            param="expires",
        ) from error


def check_expiry(moment: datetime) -> datetime:
    """Return the moment in UTC. Raises for one that has passed."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if moment <= datetime.now(UTC):
        raise InvalidRequest("The expiry is in the past.", param="expires")
    return moment
