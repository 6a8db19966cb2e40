"""Implements ``bitinglip top``: the server's state on one screen, again and again."""

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.context import CliContext
from cli.errors import Failure
from cli.options import ConfigOption, HomeOption, JsonOption
from cli.show.output import console, show, show_json

if TYPE_CHECKING:
    from cli.client import Client
    from cli.show.tables import Rates

_WIDEST = 160
_ROWS_BESIDE_MODELS = 15  #: headline, devices, workers and the lines between, in a usual case


def top(
    once: Annotated[bool, typer.Option("--once", help="Show the state once and exit.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two updates.")] = 1.0,
    as_json: JsonOption = False,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Show devices, memory, models, queues, workers and rates, live; q leaves."""
    watcher = _Watcher(CliContext.of(home, config).need_server())
    if as_json:
        show_json(watcher.refresh())
    elif once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        show(watcher.screen(watcher.refresh()))
    else:
        _live(watcher, interval)


class _Watcher:
    """Asks the server, and remembers enough to compute rates and to notice that it has gone."""

    def __init__(self, server: "Client") -> None:
        self._server = server
        self._console = console()
        self._before: tuple[float, dict[str, float]] | None = None
        self._found: dict[str, Any] = {}
        self._answered = time.monotonic()
        self.rates: Rates | None = None

    def refresh(self) -> dict[str, Any]:
        """Return the present state. Raises Failure if the server does not answer."""
        status = self._server.get("/api/v1/cluster/status")
        self._found = {"url": self._server.url, **status}
        self._measure(_counters(self._server.text("/metrics")))
        self._answered = time.monotonic()
        return self._found

    def screen(self, found: dict[str, Any]) -> Any:
        from cli.show.tables import board

        size = self._console.size
        most = max(5, size.height - _ROWS_BESIDE_MODELS) if self._console.is_terminal else 1000
        return board(found, self.rates, width=min(size.width, _WIDEST), most_models=most)

    def next_screen(self) -> Any:
        """Return a new screen, or the last one with a message if the server does not answer."""
        from rich.console import Group
        from rich.text import Text

        try:
            return self.screen(self.refresh())
        except Failure:
            silent = time.monotonic() - self._answered
            self._before = self.rates = None
            word = Text(f"no answer since {silent:.0f} s", style="bold red")
            return Group(word, self.screen(self._found) if self._found else "")

    def _measure(self, counters: dict[str, float]) -> None:
        from cli.show.tables import Rates

        now = time.monotonic()
        if self._before is not None:
            then, old = self._before
            each = {
                name: max(0.0, value - old.get(name, 0.0)) / (now - then)
                for name, value in counters.items()
            }
            self.rates = Rates(each["jobs"], each["prompt"], each["completion"])
        self._before = (now, counters)


def _counters(text: str) -> dict[str, float]:
    """Return the ended jobs and the tokens of all models, summed from the metrics' text."""
    from prometheus_client.parser import text_string_to_metric_families

    sums = {"jobs": 0.0, "prompt": 0.0, "completion": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "bitinglip_jobs_total":
                sums["jobs"] += sample.value
            elif sample.name == "bitinglip_tokens_total" and sample.labels.get("kind") in sums:
                sums[sample.labels["kind"]] += sample.value
    return sums


def _live(watcher: _Watcher, interval: float) -> None:
    from rich.live import Live

    with (
        _keys(),
        Live(console=console(), screen=True, auto_refresh=False) as live,
    ):
        try:
            while True:
                live.update(watcher.next_screen(), refresh=True)
                if _pressed(interval) == b"q":
                    return
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[None]:
    """Read keys one by one without echo; the terminal's mode is restored afterwards."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> bytes:
    """Return the key that was pressed in that time, if any."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1) if ready else b""
