"""Runs pull and verify, which move or read many bytes, with a progress bar."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli import offline
from cli.errors import Failure
from cli.show.output import clean, console, print_note, size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from cli.context import CliContext
    from model_store.hub import HubOptions


def pull_model(
    place: "CliContext",
    repo: str,
    revision: str | None,
    *,
    name: str | None,
    include: Sequence[str],
    allow_pickles: bool,
) -> None:
    """Pull into the home's store, also while a server runs: a pull only adds a folder."""
    hub = _hub(place)
    from model_store.hub import pull

    place.home.create()
    print_note(f"Pulling {repo} into {place.home.models}")
    try:
        with transfer(repo) as progress:
            manifest = pull(
                offline.store(place.home, confine=place.settings().workers.confine),
                repo,
                revision=revision,
                name=name,
                include=include,
                hub=hub,
                allow_pickles=allow_pickles or place.allows_pickles(name or repo),
                progress=progress,
            )
    except KeyboardInterrupt:
        print_note("Stopped. The same command goes on from here.")
        raise
    offline.enter(place.home, "model.pull", manifest.name, after=offline.model_facts(manifest))
    print_note(f"Pulled {manifest.name}: {manifest.kind}, {size(manifest.total_bytes)}, verified.")


def _hub(place: "CliContext") -> "HubOptions":
    from model_store.hub import HubOptions

    settings = place.settings().hub
    token = os.environ.get("HF_TOKEN")
    if settings.token_file is not None:
        token = Path(settings.token_file).expanduser().read_text()
    return HubOptions(settings.endpoint, token.strip() or None if token else None, settings.offline)


def verify_model(place: "CliContext", name: str) -> None:
    offline.manifest(place.home, name)
    with transfer(f"Reading {name}") as progress:
        wrong = offline.store(place.home).verify(name, progress)
    if wrong:
        files = f"{len(wrong)} of its files" if len(wrong) > 5 else ", ".join(wrong)
        raise Failure(f"{name} is damaged: {files}; remove it and pull it again")
    print_note(f"{name} is whole.")


class Transfer:
    """Shows a progress bar on a terminal; in a log, a line for each tenth."""

    def __init__(self, what: str, bars: "Bars | None") -> None:
        self._what = what
        self._bars = bars
        self._total = 0
        self._tenth = 0
        self._task = bars.add_task(clean(what), total=None) if bars else None

    def plan(self, total_bytes: int, files: int) -> None:
        """Begin the work, or its next part."""
        self._total, self._tenth = total_bytes, 0
        if self._bars and self._task is not None:
            self._bars.reset(self._task, total=total_bytes)
        else:
            print_note(f"{self._what}: {files} files, {size(total_bytes)}")

    def advance(self, path: str, bytes_done: int) -> None:  # noqa: ARG002  the protocol's
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=bytes_done)
        elif self._total and (tenth := 10 * bytes_done // self._total) > self._tenth:
            self._tenth = tenth
            print_note(f"{self._what}: {tenth}0 %")


@contextmanager
def transfer(what: str) -> Iterator[Transfer]:
    if not sys.stderr.isatty():
        yield Transfer(what, None)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(sys.stderr)) as bars:
        yield Transfer(what, bars)
