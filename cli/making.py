"""A long answer in the making: its events as a bar on a terminal, its end as an answer."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.client import Client, refusal
from cli.failures import Failure
from cli.output import clean, console

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Words:
    """What is made, and what the bar says meanwhile."""

    what: str  #: "image"
    begun: str  #: "reading the prompt"
    doing: str  #: "drawing"
    last: str  #: "finishing"
    step: str  #: "step"


def make(client: Client, route: str, body: dict[str, Any], words: Words) -> dict[str, Any]:
    """The InferenceResponse of a request, with a bar on a terminal while it is made.

    Leaving by an exception, Ctrl-C too, cancels it on the server.
    """
    with (
        _bar(body["model"], words) as bar,
        client.stream(route, {**body, "stream": True}) as events,
    ):
        for name, data in events:
            if name == "completed":
                return data
            if name == "failed":
                raise refusal(data.get("error") or {})
            if name == "cancelled":
                raise Failure(f"the {words.what} was cancelled on the server")
            bar.tell(name, data)
    raise Failure(f"the connection broke off before the {words.what} was complete")


class _Bar:
    """What the server does, as a bar; says nothing without a terminal."""

    def __init__(self, model: str, words: Words, bars: "Progress | None") -> None:
        self._model = model
        self._words = words
        self._bars = bars
        self._task = bars.add_task(f"asking {clean(model)}", total=None, text="") if bars else None

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
