"""Declares what gateways tell each other: that something in the database is another one now.

A message names what changed, and holds nothing of it: who hears it reads the database, which alone
is true. So one that comes twice, late or after the next does no harm.
"""

import msgspec

MOST = 1 << 16  #: bytes of a message


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True):
    """Is one of the messages below."""


class KeysChanged(Message, frozen=True, tag="keys"):
    """These keys were made, changed, rotated or revoked."""

    ids: tuple[str, ...]


class TokensRevoked(Message, frozen=True, tag="tokens"):
    """These session tokens were revoked, before their ends as Unix times."""

    ends: dict[str, int]


class ModelsChanged(Message, frozen=True, tag="models"):
    """These models came, went or have other files."""

    names: tuple[str, ...]


class TasksCancelled(Message, frozen=True, tag="tasks"):
    """These tasks are to end, wherever they run."""

    ids: tuple[str, ...]


class SettingsChanged(Message, frozen=True, tag="settings"):
    """Files that the settings name, such as the list of words, were changed."""


class RowsChanged(Message, frozen=True, tag="rows"):
    """Rows that gateways share were changed: keys, tokens, or what a gateway is asked to do."""


class Missed(Message, frozen=True, tag="missed"):
    """A gateway could not tell what it had to tell: anything may have changed."""


Told = (
    KeysChanged
    | TokensRevoked
    | ModelsChanged
    | TasksCancelled
    | SettingsChanged
    | RowsChanged
    | Missed
)


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """Is a message with its sender, which does not hear itself."""

    gateway: str
    told: Told
