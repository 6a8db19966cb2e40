"""Shows the events of a long request as a bar on a terminal, and returns its response."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from cli.client import Client, Upload, refusal
from cli.errors import Failure
from cli.show.output import clean, console, size

if TYPE_CHECKING:
    from rich.progress import Progress


_BEFORE = ("queued", "loading", "started", "progress")


@dataclass(frozen=True)
class Words:
    """Holds the texts of a bar: what is being made, and what to say meanwhile."""

    what: str  #: "image"
    begun: str  #: "reading the prompt"
    doing: str  #: "drawing"
    last: str  #: "finishing"
    step: str  #: "step"


def make(
    client: Client,
    route: str,
    body: dict[str, Any],
    words: Words,
    *,
    upload: Upload | None = None,
    each: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Send a request and show a bar until it ends; return the InferenceResponse.

    ``upload``: a file to send with it. ``each`` shows events itself, from the first one on that
    is part of the answer; the bar leaves the terminal to it then. Leaving by an exception, Ctrl-C
    too, cancels it on the server.
    """
    with (
        _bar(body["model"], words) as bar,
        client.stream(route, {**body, "stream": True}, bar.watched(upload)) as events,
    ):
        for name, data in events:
            if name == "completed":
                return data
            if name == "failed":
                raise refusal(data.get("error") or {})
            if name == "cancelled":
                raise Failure(f"the {words.what} was cancelled on the server")
            if each is not None and name not in _BEFORE:
                bar.stop()
                each(name, data)
            bar.tell(name, data)
    raise Failure(f"the connection broke off before the {words.what} was complete")


class _Watched(io.RawIOBase):
    """Wraps a file and reports how much of it was read."""

    def __init__(self, inner: IO[bytes], tell: Callable[[int, int], None]) -> None:
        self._inner = inner
        self._tell = tell
        self._size = inner.seek(0, io.SEEK_END)
        inner.seek(0)

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._tell(self._inner.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()


class _Bar:
    """Shows what the server does as a bar; prints nothing without a terminal."""

    def __init__(self, model: str, words: Words, bars: "Progress | None") -> None:
        self._model = model
        self._words = words
        self._bars = bars
        self._task = bars.add_task(f"asking {clean(model)}", total=None, text="") if bars else None

    def watched(self, upload: Upload | None) -> Upload | None:
        """Return the same file with its upload shown in the bar."""
        if upload is None or self._bars is None:
            return upload
        name, file = upload

        def sent(done: int, total: int) -> None:
            self._show("sending the file", done, total, f"{size(done)} of {size(total)}")

        return name, cast("IO[bytes]", _Watched(file, sent))

    def stop(self) -> None:
        """Remove the bar, so that something else can use the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def tell(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "queued":
                self._show(f"in line for {self._model}", text=f"number {data.get('position', 1)}")
            case "loading":
                part = data.get("progress", 0)
                self._show(f"loading {self._model}", 100 * part, 100, f"{part:.0%}")
            case "started":
                self._show(self._words.begun)
            case "progress":
                step, steps = data["step"], data["steps"]
                what = self._words.doing if step < steps else self._words.last
                self._show(what, step, steps, f"{self._words.step} {step}/{steps}")

    def _show(self, what: str, done: float = 0, total: float | None = None, text: str = "") -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, description=clean(what), completed=done, total=total, text=text
            )


@contextmanager
def _bar(model: str, words: Words) -> Iterator[_Bar]:
    if not sys.stderr.isatty():
        yield _Bar(model, words, None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[text]:>14}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(sys.stderr), transient=True) as bars:
        yield _Bar(model, words, bars)
