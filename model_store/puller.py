"""A process of its own that pulls one repository into the store for the server, and ends.

    python -m model_store.puller

Its order comes on stdin, and its messages go to stdout (see pull_messages). To end it is to
cancel the pull, which a later one goes on with. It ends with its parent: when stdin ends, it
ends itself and all that it has started.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.errors import NameTaken, PullRunning, StoreError
from model_store.pull_messages import (
    Message,
    Order,
    Planned,
    Progressed,
    Pulled,
    Refused,
    Waits,
    decode_order,
    encode,
)

if TYPE_CHECKING:
    from model_store.manifest import Manifest
    from model_store.store import ModelStore

#: The hub's client reads these when it is imported. Its own accelerated transfer has no fallback
#: and goes round a mirror, so it stays off.
_HUB = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}
_TELL_SECONDS = 0.25  #: between two messages of progress
_WAIT_SECONDS = 0.5  #: between two looks at whether another process's pull has ended


class Teller:
    """Writes messages, those of progress at most four times a second; it is a Progress."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._told_at = 0.0
        self._done = 0

    def say(self, message: Message) -> None:
        data = encode(message)
        while data:
            data = data[os.write(self._fd, data) :]

    def plan(self, total_bytes: int, files: int) -> None:  # noqa: ARG002  the protocol's
        self.say(Planned(bytes_total=total_bytes))

    def advance(self, path: str, bytes_done: int) -> None:  # noqa: ARG002  the protocol's
        self._done = bytes_done
        now = time.monotonic()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            self.say(Progressed(bytes_done=bytes_done))


def main() -> int:
    lines = _lines(0)
    try:
        order = decode_order(next(lines))
    except StopIteration:
        return 1
    threading.Thread(target=_end_with_parent, args=(lines,), daemon=True).start()
    # What a library prints must not get between the messages.
    teller = Teller(os.dup(1))
    os.dup2(2, 1)
    os.environ.update({**order.environ, **_HUB})
    try:
        manifest = _pull(order, teller)
    except StoreError as error:
        teller.say(Refused(error.code, error.message))
        return 1
    except Exception as error:  # noqa: BLE001  the server is told, whatever it is
        # Without its text, which may hold an address with a signature.
        sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
        sys.stderr.write(f"{type(error).__name__}\n")
        why = f"The download ended by a fault of the server ({type(error).__name__})."
        teller.say(Refused("INTERNAL_ERROR", why))
        return 1
    teller.say(
        Pulled(
            manifest.name, manifest.kind, manifest.source, manifest.revision, manifest.total_bytes
        )
    )
    return 0


def _pull(order: Order, teller: Teller) -> "Manifest":
    """Pull, after another process that pulls the same, which may be all that is to be done."""
    from model_store.hub import HubOptions, pull
    from model_store.store import ModelStore

    store = ModelStore(Path(order.root), confine=order.confine)
    waited = False
    while True:
        try:
            return pull(
                store,
                order.repo,
                revision=order.revision,
                name=order.name,
                include=order.include,
                hub=HubOptions(order.endpoint, order.token),
                allow_pickles=order.allow_pickles,
                progress=teller,
            )
        except PullRunning:
            if not waited:
                teller.say(Waits())
            waited = True
            time.sleep(_WAIT_SECONDS)
        except NameTaken:
            found = _arrived(store, order) if waited else None
            if found is None:
                raise
            return found


def _arrived(store: "ModelStore", order: Order) -> "Manifest | None":
    """Return the model if the other process's pull has brought just this one."""
    found = store.listing.find(order.name)
    wanted = found is not None and found.source == f"hub:{order.repo}"
    return found if wanted and not order.include else None


def _lines(fd: int) -> Iterator[bytes]:
    """Yield the lines that come, without Python's buffer, which a thread must not hold at the end
    of the process."""
    rest = b""
    while data := os.read(fd, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _end_with_parent(lines: Iterator[bytes]) -> None:
    for _ in lines:
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
