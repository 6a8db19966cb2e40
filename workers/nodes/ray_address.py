"""Reads and tries the address of a Ray cluster, without Ray."""

import os
import re
import socket

HINT = (
    "start it with 'ray start --head', or correct workers.ray.address: it is the one that "
    "'ray start --head' prints"
)
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")  #: a name or an address; colons are IPv6's
_HIGHEST_PORT = 65535


def head_of(address: str) -> tuple[str, int] | None:
    """Return host and port of the cluster's head; None for auto. Raises ValueError."""
    if address == "auto":
        return None
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) <= _HIGHEST_PORT
    if not is_port or not _HOST.fullmatch(bare) or (":" in bare and bare == host):
        raise ValueError(
            "must be the head's address as 'ray start --head' prints it, such as 10.0.0.1:6379, "
            "without ray:// or http://; auto uses the cluster that runs on this machine"
        )
    return bare, int(port)


def why_unreached(address: str, seconds: float) -> str | None:
    """Connect to the head and close; return why that fails, None if something answers.

    Ray itself says so after a minute only.
    """
    if (head := head_of(address)) is None:
        return None
    try:
        socket.create_connection(head, timeout=seconds).close()
    except (OSError, UnicodeError) as error:  # or a name with a part that is too long
        number = getattr(error, "errno", None)
        told = getattr(error, "strerror", None) or (os.strerror(number) if number else str(error))
        return told.lower()
    return None
