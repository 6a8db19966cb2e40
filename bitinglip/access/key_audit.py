"""Shows the changes of keys in the audit log."""

from typing import Any

from bitinglip.audit.entry import Action, Actor, Entry, changed
from bitinglip.db.tables import ApiKey

#: columns that no entry shows: what secrets are known by, and what changes by itself
_NOT_SHOWN = frozenset({"id", "digest", "former_digest", "pepper_id", "last_used_at"})


def shown_fields(row: ApiKey) -> dict[str, Any]:
    """Return the fields of a key that are set."""
    values = {name: getattr(row, name) for name in type(row).model_fields.keys() - _NOT_SHOWN}
    return {name: value for name, value in values.items() if value is not None}


def entry_of(action: Action, row: ApiKey, by: Actor, before: dict[str, Any] | None = None) -> Entry:
    """Make the entry of a change, which the row shows already; a new key has no ``before``."""
    old, new = changed(before or {}, shown_fields(row))
    return Entry(action, by, row.id, before=old if before else None, after=new)
