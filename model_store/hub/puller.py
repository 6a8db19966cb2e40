"""Pulls one repository into the store for the server, as a process of its own, and ends.

    python -m model_store.hub.puller

Its order comes on stdin, and its messages go to stdout (see messages). To end it is to
cancel the pull, which a later one goes on with. It ends with its parent: when stdin ends, it
ends itself and all that it has started.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from model_store.errors import HubUnreachable, StoreError
from model_store.hub.messages import (
    MOST_FILES,
    Message,
    Order,
    Planned,
    Progressed,
    Pulled,
    Refused,
    Waits,
    decode_limit,
    decode_order,
    encode,
    told,
)
from model_store.hub.options import Rate
from model_store.manifest import Manifest

if TYPE_CHECKING:
    from model_store.hub.plan import Plan
    from model_store.hub.request import PullRequest
    from model_store.store import ModelStore

#: fetches a model into a store
Fetch = Callable[["ModelStore", "PullRequest"], Manifest]
#: The hub's client reads these when it is imported. Its own accelerated transfer has no fallback
#: and goes round a mirror, so it stays off.
_HUB = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}
_TELL_SECONDS = 0.25  #: between two messages of progress
_NICE = 5
_OOM_SCORE = "900"


class Teller:
    """Writes messages; it is a Progress, and what it is told is told on four times a second."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._planned = self._ended = False
        self._total_done = 0
        self._done: dict[str, int] = {}
        self._grown: dict[str, int] = {}  #: since the last message
        self._noted: Plan | None = None

    def start(self) -> None:
        threading.Thread(target=self._tell_again_and_again, daemon=True).start()

    def say(self, message: Message) -> None:
        with self._lock:
            self._write(message)

    def end(self, message: Pulled | Refused) -> None:
        """Say the last message: nothing comes after it, whatever other threads are told."""
        with self._lock:
            self._tell()
            self._write(message)
            self._ended = True

    def note(self, plan: "Plan") -> None:
        self._noted = plan

    def plan(self, files: Mapping[str, int], done: Mapping[str, int]) -> None:
        """Tell of the files that are fetched, and of no further work such as converting them."""
        if self._planned:
            return
        self._planned = True
        listed = told(files.items())
        self._done = {path: done.get(path, 0) for path in files}
        self._total_done = sum(self._done.values())
        self.say(
            Planned(
                bytes_total=sum(files.values()),
                bytes_done=self._total_done,
                files=listed,
                done={path: self._done[path] for path in listed},
                notes=self._noted.notes if self._noted else (),
                expected=self._noted.expected if self._noted else None,
            )
        )

    def advance(self, path: str, bytes_done: int) -> None:
        if path not in self._done:
            return
        with self._lock:
            self._total_done += max(0, bytes_done - self._done[path])
            self._grown[path] = self._done[path] = max(bytes_done, self._done[path])

    def tell(self) -> None:
        """Tell how far it is, if there is news."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        if self._grown and not self._ended:
            grown, self._grown = self._grown, {}
            self._write(Progressed(bytes_done=self._total_done, files=told(grown.items())))

    def _tell_again_and_again(self) -> None:
        # By a clock of its own: where no more comes, what has come is told all the same.
        while True:
            time.sleep(_TELL_SECONDS)
            self.tell()

    def _write(self, message: Message) -> None:
        data = encode(message)
        while data:
            data = data[os.write(self._fd, data) :]


def main() -> int:
    lines = _lines(0)
    # What a library prints must not get between the messages.
    teller = Teller(os.dup(1))
    os.dup2(2, 1)
    try:
        order = decode_order(next(lines))
        _yield_to_the_server()
        rate = Rate(order.bytes_per_second)
        threading.Thread(target=_obey, args=(lines, rate), daemon=True).start()
        teller.start()
        os.environ.update({**order.environ, **_HUB})
        done = _work(order, rate, teller)
    except StopIteration:  # the server is gone before it has said a word
        return 1
    except StoreError as error:
        teller.end(Refused(error.code, error.message, isinstance(error, HubUnreachable)))
        return 1
    except BaseException as error:  # noqa: BLE001  the server is told, whatever it is
        # Without its text, which may hold an address with a signature.
        sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
        sys.stderr.write(f"{type(error).__name__}\n")
        why = f"The download ended by a fault of the server ({type(error).__name__})."
        teller.end(Refused("INTERNAL_ERROR", why))
        return 1
    teller.end(done)
    return 0


def _work(order: Order, rate: Rate, teller: Teller) -> Pulled:
    from model_store.hub.joining import alone, pull_or_join
    from model_store.hub.options import HubOptions
    from model_store.hub.pull import PullRequest, pull, update
    from model_store.store import ModelStore

    store = ModelStore(Path(order.root), confine=order.confine, bases=order.bases)
    hub = HubOptions(
        order.endpoint,
        order.token,
        bytes_per_second=rate,
        parallel=order.parallel,
        mirrors=order.mirrors,
        min_bytes_per_second=order.min_bytes_per_second,
    )

    request = PullRequest(
        repo=order.repo,
        hub=hub,
        revision=order.revision,
        name=order.name,
        include=order.include,
        allow_pickles=order.allow_pickles,
    )

    def fetch(into: ModelStore, wanted: PullRequest) -> Manifest:
        return pull(into, wanted, teller, planned=teller.note)

    def waits() -> None:
        teller.say(Waits())

    if order.task == "repair":
        return _repair(store, request, lambda *what: alone(lambda: fetch(*what), waits))
    if order.task == "update":
        change = alone(lambda: update(store, request, teller, planned=teller.note), waits)
        return _pulled(store.get(order.name), change.files)
    return _pulled(pull_or_join(store, request, lambda: fetch(store, request), waits))


def _repair(store: "ModelStore", request: "PullRequest", fetch: Fetch) -> Pulled:
    from model_store.repair import repair

    def fetch_again(into: "ModelStore", old: Manifest, paths: Sequence[str]) -> Manifest:
        return fetch(into, replace(request, revision=old.revision, include=paths))

    # What is read is no part of the download, whose progress is told.
    found = repair(store, request.model, fetch_again)
    repaired = {"repaired": [each.path for each in found]} if found else {}
    return _pulled(store.get(request.model), repaired)


def _pulled(manifest: Manifest, changes: dict[str, list[str]] | None = None) -> Pulled:
    return Pulled(
        manifest.name,
        manifest.kind,
        manifest.source,
        manifest.revision,
        manifest.total_bytes,
        {what: paths[:MOST_FILES] for what, paths in (changes or {}).items()},
    )


def _lines(fd: int) -> Iterator[bytes]:
    """Yield the lines that come, without Python's buffer, which a thread must not hold at the end
    of the process."""
    rest = b""
    while data := os.read(fd, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _obey(lines: Iterator[bytes], rate: Rate) -> None:
    """Take what the server says later; end with it, and all that was started here."""
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            rate.bytes_per_second = decode_limit(line).bytes_per_second
    os.killpg(0, signal.SIGKILL)


def _yield_to_the_server() -> None:
    """Leave processors to others first, and be ended first where memory is short: what has come
    is kept."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


if __name__ == "__main__":
    sys.exit(main())
