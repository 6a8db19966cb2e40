"""Declares what gateways tell each other: that something in the database is another one now.

A message names what changed, and holds nothing of it: who hears it reads the database, which alone
is true. So one that comes twice, late or after the next does no harm.
"""

import msgspec


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True):
    """Is one of the messages below."""


class RowsChanged(Message, frozen=True, tag="rows"):
    """Says that shared rows were changed: keys, tokens, or requests to a gateway."""


class CacheCleared(Message, frozen=True, tag="cache"):
    """Cached answers are to be forgotten."""


class Missed(Message, frozen=True, tag="missed"):
    """A gateway could not tell what it had to tell: anything may have changed."""


Notice = RowsChanged | CacheCleared | Missed


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Is a message with its sender, which does not hear itself."""

    gateway: str
    told: Notice
