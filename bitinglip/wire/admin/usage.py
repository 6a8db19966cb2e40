"""Parses the query of usage, for the API and the command line."""

from collections.abc import Mapping
from datetime import date

from bitinglip.access.usage.rows import GROUPS, Wanted
from bitinglip.errors import InvalidRequest

FILTERS = ("key_id", "model", "from", "to", "group_by")
_DEFAULT_GROUPS = "day,key,model"
_DAY = "2026-11-27"


def wanted_usage(query: Mapping[str, str], key_id: str | None) -> Wanted:
    """Return which sums a query asks for, of one key or of all. Raises InvalidRequest."""
    return Wanted(
        by=_groups(query.get("group_by", _DEFAULT_GROUPS)),
        key_id=key_id,
        model=query.get("model"),
        first=_day(query, "from"),
        last=_day(query, "to"),
    )


def _groups(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) < len(names) or not set(names) <= set(GROUPS):
        raise InvalidRequest(
            f"'group_by' names some of {', '.join(GROUPS)}, each once.", param="group_by"
        )
    if {"day", "month"} <= set(names):
        raise InvalidRequest("'group_by' takes day or month, not both.", param="group_by")
    return names


def _day(query: Mapping[str, str], name: str) -> date | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        if len(text) == len(_DAY):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidRequest(f"'{name}' is a day such as {_DAY}.", param=name)
