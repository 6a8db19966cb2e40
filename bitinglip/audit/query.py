"""Selects the entries of the audit log that a reader asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select
from sqlmodel import col

from bitinglip.audit.entry import Action
from bitinglip.db.tables import AuditRow
from bitinglip.errors import InvalidRequest

NAMES = ("actor", "action", "target", "from", "to")
_ACTIONS = {part for each in Action for part in (str(each), each.partition(".")[0])}


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects entries; None selects all. Times are in microseconds of Unix time."""

    actor: str | None = None  #: a key's id or name, ``cli`` or ``server``
    action: str | None = None  #: ``key.create``, or ``key`` for all that begin with ``key.``
    target: str | None = None
    since: int | None = None
    until: int | None = None  #: itself excluded

    def of(self, query: Select[Any]) -> Select[Any]:
        """Return the query with these conditions."""
        if self.actor is not None:
            named = col(AuditRow.actor_name) == self.actor
            query = query.where((col(AuditRow.actor) == self.actor) | named)
        if self.action is not None:
            group = col(AuditRow.action).startswith(f"{self.action}.", autoescape=True)
            query = query.where((col(AuditRow.action) == self.action) | group)
        if self.target is not None:
            query = query.where(col(AuditRow.target) == self.target)
        if self.since is not None:
            query = query.where(col(AuditRow.at) >= self.since)
        if self.until is not None:
            query = query.where(col(AuditRow.at) < self.until)
        return query


def parse_filter(given: Mapping[str, str]) -> Filter:
    """Read what was asked for, by the NAMES. Raises InvalidRequest."""
    action = given.get("action")
    if action is not None and action not in _ACTIONS:
        raise InvalidRequest(f"'action' must be one of {', '.join(Action)}.", param="action")
    return Filter(
        given.get("actor"),
        action,
        given.get("target"),
        _moment(given, "from"),
        _moment(given, "to"),
    )


def _moment(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return int(moment.timestamp()) * 1_000_000 + moment.microsecond
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"'{name}' must be a time in ISO 8601, such as 2030-01-31T12:00:00Z.", param=name
        ) from error
