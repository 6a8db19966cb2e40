"""Derive how many connections the server takes from the descriptors that the process may have."""

import resource
from dataclasses import dataclass

from bitinglip.settings import Server

#: no more than this by default: each connection costs some kilobytes and a look every second
MOST_CONNECTIONS = 16_384
#: kept for workers, the database, files and downloads: half of a small limit, this of a large one
_MOST_RESERVED = 512
#: a limit above this does not help, and slows programs that walk through all possible descriptors
_MOST_DESCRIPTORS = 1 << 20
_MOST_BACKLOG = 2048
_SPARE = 16


@dataclass(frozen=True, slots=True)
class Capacity:
    """Holds the caps of a server; each is at least one."""

    total: int  #: connections in all
    per_address: int  #: connections of one address; loopback and Unix sockets have no such cap
    per_key: int  #: requests of one key at once
    spare: int  #: connections beyond the caps that are answered with 503, or with their /livez
    backlog: int  #: connections that the kernel holds for us; one turn of the loop takes them all


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors as far as it goes, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def capacity(server: Server, descriptors: int) -> Capacity:
    """Return the caps under these settings for a process with so many descriptors."""
    reserved = min(_MOST_RESERVED, descriptors // 2)
    spare = max(1, min(_SPARE, reserved // 4))
    possible = max(1, descriptors - reserved - spare)
    total = min(server.max_connections or MOST_CONNECTIONS, possible)
    return Capacity(
        total=total,
        per_address=min(total, server.max_connections_per_address or max(1, total // 4)),
        per_key=server.max_requests_per_key or max(1, total // 2),
        spare=spare,
        backlog=max(8, min(_MOST_BACKLOG, reserved // 2)),
    )
