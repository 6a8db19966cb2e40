"""Keeps what the last requests were: how each ended, and how long it took. No bodies."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

MOST = 500

#: routes that watchers and probes ask again and again; they would push out all others
UNSEEN = frozenset(
    {
        "/",
        "/dashboard/{files_digest}/{name:path}",
        "/health",
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/cluster/events",
        "/api/v1/cluster/requests",
        "/api/v1/cluster/status",
    }
)


class LastRequest(NamedTuple):
    """Describes a request that has ended."""

    ended: float  #: seconds since 1970
    request_id: str
    method: str
    endpoint: str  #: the template of its route
    status: int
    seconds: float
    key_id: str | None  #: None: without a valid key
    model: str | None  #: None: it was about no job
    job_id: str | None


#: the fields of a ``LastRequest``: a plain tuple is made faster, and one is made at each request
Row = tuple[float, str, str, str, int, float, str | None, str | None, str | None]


class LastRequests:
    """Holds the last requests, so many that they take less than a megabyte."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=MOST)
        self.total = 0  #: that were ever added

    def add(self, endpoint: str, row: Row) -> None:
        """Keep a request, if it is none of a watcher's."""
        if endpoint not in UNSEEN:
            self._rows.append(row)
            self.total += 1

    def __iter__(self) -> Iterator[LastRequest]:
        """Iterate from the newest to the oldest."""
        return (LastRequest(*row) for row in reversed(self._rows))
