"""Name what can go wrong in the store.

``code`` is the contract's error code; messages hold no paths of the server.
"""

from typing import Literal

StoreCode = Literal[
    "CONFLICT",
    "DISK_FULL",
    "DOWNLOAD_FAILED",
    "INTERNAL_ERROR",
    "INVALID_MODEL",
    "INVALID_REQUEST",
    "MODEL_LOAD_FAILED",
    "OVERLOADED",
]


class StoreError(Exception):
    code: StoreCode = "INTERNAL_ERROR"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StoreUnavailable(StoreError):
    """The store cannot be read or written to now: its disk is gone, failed or read-only."""

    code = "OVERLOADED"


class UnknownModel(StoreError):
    code = "INVALID_MODEL"


class BadName(StoreError):
    code = "INVALID_REQUEST"


class BadFiles(StoreError):
    """The files are not a model that may be taken in."""

    code = "INVALID_REQUEST"


class ChangedFiles(StoreError):
    """A model's files are not those that were checked when it was taken in."""

    code = "MODEL_LOAD_FAILED"


class UnreadableFiles(StoreError):
    """The server's user may not read a model's files."""

    code = "MODEL_LOAD_FAILED"


class NameTaken(StoreError):
    code = "CONFLICT"


class BaseOfAdapters(StoreError):
    """Other models of the store cannot do without this one."""

    code = "CONFLICT"


class PullRunning(StoreError):
    code = "CONFLICT"


class DownloadError(StoreError):
    code: StoreCode = "DOWNLOAD_FAILED"


class HubUnreachable(DownloadError):
    """The hub does not answer now, or is busy: that may pass."""


class NotFoundOnHub(DownloadError):
    """The hub has no such repository or revision, or does not show it to us."""

    code = "INVALID_MODEL"


class NoSuchRepository(NotFoundOnHub):
    """Nothing of that name is there, or it is private."""


class Gated(DownloadError):
    """The repository's owner wants to be asked first."""


class TokenRefused(DownloadError):
    """The hub does not know the token (any more)."""


class NoSpace(StoreError):
    code = "DISK_FULL"


class PullCancelled(StoreError):
    code = "DOWNLOAD_FAILED"
