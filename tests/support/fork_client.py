"""Has a process that forks run a command, as ``command_forks`` does and as a program by itself.

    python -IS tests/support/fork_client.py ADDRESS [ARGUMENTS]

It imports little: a shell that runs many commands pays for it each time.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

HEAD_BYTES = 10


def connection(address: str) -> socket.socket:
    """Connect to the process that forks. Raises OSError if there is none."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect("\0" + address)
    except OSError:
        sock.close()
        raise
    return sock


def head(number: int) -> bytes:
    """Return what a message begins with: its length, or what is wanted in its place."""
    return b"%*d" % (HEAD_BYTES, number)


def begin(
    sock: socket.socket,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    files: Sequence[int],
) -> int:
    """Start ``python -m cli`` with three descriptors, and return the id of its process. The
    connection tells its exit code later, and ends it by being closed."""
    message = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": cwd}).encode()
    socket.send_fds(sock, [head(len(message))], list(files))
    sock.sendall(message)
    return int(sock.recv(HEAD_BYTES))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    told = connection(sys.argv[1])
    begin(told, sys.argv[2:], env=os.environ, cwd=os.getcwd(), files=(0, 1, 2))
    sys.exit(int(told.recv(20)) & 0xFF)
