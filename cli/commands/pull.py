"""Pulls by the command itself, and the bars of all that moves or reads many bytes."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cli import offline
from cli.errors import Failure
from cli.show.output import (
    Waiting,
    clean,
    console,
    duration,
    print_note,
    show_table,
    size,
    waiting,
)

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from cli.context import CliContext
    from model_store.hub.pull import HubOptions, Plan, PullRequest
    from model_store.manifest import Manifest

_MOST_BARS = 6  #: of single files
_LONGEST_NAME = 40


@dataclass(frozen=True)
class PullArguments:
    """Says what a pull is asked for; ``repo`` may be a short name, which the model has then."""

    repo: str
    revision: str | None
    name: str | None
    include: tuple[str, ...]
    allow_pickles: bool


def pull_model(place: "CliContext", asked: PullArguments, token: str | None = None) -> None:
    """Pull into the home's store, also while a server runs: a pull only adds a folder.

    ``token`` comes before the one of the settings.
    """
    hub = hub_options(place, token)
    place.home.create()
    asked = _resolved(place, asked)
    print_note(f"Pulling {asked.repo} into {place.home.models}")
    try:
        with transfer(asked.repo, f"asking the hub for {asked.repo}") as progress:
            manifest = _pull(place, _request(asked, hub), progress)
    except KeyboardInterrupt:
        print_note("Stopped. The same command goes on from here.")
        raise
    offline.enter(place.home, "model.pull", manifest.name, after=offline.model_facts(manifest))
    print_note(f"Pulled {manifest.name}: {manifest.kind}, {size(manifest.total_bytes)}, verified.")


def _pull(place: "CliContext", request: "PullRequest", progress: "Transfer") -> "Manifest":
    """Pull, after another program that pulls the same; wait for a hub that has begun to deliver."""
    from model_store.errors import HubUnreachable
    from model_store.hub.joining import pull_or_join
    from model_store.hub.pull import pull
    from model_store.hub.retries import pause_before

    settings = place.settings()
    store = offline.store(place.home, confine=settings.workers.confine)
    shown: list[Plan] = []

    def show(found: "Plan") -> None:
        progress.clear()
        if not shown:  # a further try is of the same
            _show_plan(place, found)
        shown.append(found)

    def waits() -> None:
        progress.clear()
        print_note("Another program pulls it already; this waits for that.")

    since, tries = time.monotonic(), 0
    while True:
        before = progress.moved
        try:
            return pull_or_join(
                store, request, lambda: pull(store, request, progress, planned=show), waits
            )
        except HubUnreachable as error:
            if progress.moved > before:
                since, tries = time.monotonic(), 0
            pause = pause_before(tries, since + settings.hub.retry_for - time.monotonic())
            # What has never answered may be a wrong address, which is not waited for.
            if pause is None or not shown:
                raise
            tries += 1
            print_note(f"{error.message} It is asked again in {duration(pause)}.")
            time.sleep(pause)


def plan_pull(place: "CliContext", asked: PullArguments, token: str | None = None) -> None:
    """Say what a pull would fetch. Raises Failure if the disk has no room for it."""
    from model_store.hub.pull import plan

    place.home.create()
    asked = _resolved(place, asked)
    with waiting(f"asking the hub for {asked.repo}"):
        found = plan(offline.store(place.home), _request(asked, hub_options(place, token)))
    rows = [(file.path, size(file.size), size(file.there)) for file in found.files]
    show_table(("FILE", "SIZE", "HERE"), rows, right="SIZE HERE")
    _show_plan(place, found)
    if not found.fits:
        raise Failure(
            f"{size(found.missing_bytes)} are to be fetched, and the disk has room for "
            f"{size(found.free_bytes)}"
        )


def _resolved(place: "CliContext", asked: PullArguments) -> PullArguments:
    """Return what is asked for with a short name replaced, and what the settings allow."""
    from model_store.hub.aliases import repo_of

    if full := repo_of(asked.repo, place.home.root):
        print_note(f"{asked.repo} stands for {full}")
        asked = replace(asked, repo=full, name=asked.name or asked.repo)
    allowed = asked.allow_pickles or place.allows_pickles(asked.name or asked.repo)
    return replace(asked, allow_pickles=allowed)


def _request(asked: PullArguments, hub: "HubOptions") -> "PullRequest":
    from model_store.hub.pull import PullRequest

    return PullRequest(
        repo=asked.repo,
        hub=hub,
        revision=asked.revision,
        name=asked.name,
        include=asked.include,
        allow_pickles=asked.allow_pickles,
    )


def _show_plan(place: "CliContext", plan: "Plan") -> None:
    for note in plan.notes:
        print_note(note)
    there = plan.total_bytes - plan.missing_bytes
    kept = f", of which {size(there)} are here" if there else ""
    print_note(
        f"Revision {plan.revision[:12]}{f' ({plan.kind})' if plan.kind else ''}: "
        f"{_files(len(plan.files))}, {size(plan.total_bytes)}{kept}; "
        f"the disk has room for {size(plan.free_bytes)}"
    )
    if plan.expected is not None:
        from bitinglip.scheduling.placement.fit_note import fit_note
        from cli.machine import machine

        with machine(place) as fit:
            print_note(fit_note(fit(plan.expected)))


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def hub_options(place: "CliContext", token: str | None = None) -> "HubOptions":
    """Return how the settings say that the hub is spoken to. Raises TokenRefused."""
    from bitinglip.downloads.hub import hub_token
    from model_store.hub.pull import HubOptions

    hub = place.settings().hub
    token = token or hub_token(hub, os.environ)
    return HubOptions(
        hub.endpoint,
        token,
        hub.offline,
        bytes_per_second=hub.bytes_per_second,
        parallel=hub.parallel,
        mirrors=tuple(hub.mirrors),
        min_bytes_per_second=hub.min_bytes_per_second,
    )


class Transfer:
    """Shows bars on a terminal, one for all and one for each file that moves; in a log, a line
    for each tenth."""

    def __init__(self, what: str, bars: "Bars | None", spinner: Waiting) -> None:
        self._what = what
        self._bars = bars
        self._spinner = spinner
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self.moved = 0  #: bytes in all, of which none was there before
        self._moved = 0  #: of these, since the last plan
        self._since = time.monotonic()
        self._tenth = 0
        self._task: TaskID | None = None
        self._shown: dict[str, TaskID] = {}

    def clear(self) -> None:
        """Remove the spinner, so that a line can be printed before the bars."""
        self._spinner.stop()

    def plan(self, files: Mapping[str, int], done: Mapping[str, int]) -> None:
        """Begin the work, or its next part."""
        self._sizes, self._done = dict(files), dict(done)
        self._moved, self._since = 0, time.monotonic()
        total, there = sum(files.values()), sum(done.values())
        self._tenth = 10 * there // total if total else 0
        if self._bars:
            self._reset(self._bars, total, there)
        else:
            print_note(f"{self._what}: {_files(len(files))}, {size(total)}")

    def _reset(self, bars: "Bars", total: int, there: int) -> None:
        """Show one bar for all; the first time, in place of the spinner."""
        for task in self._shown.values():
            bars.remove_task(task)
        self._shown.clear()
        if self._task is None:
            self.clear()
            self._task = bars.add_task(clean(self._what), total=total, completed=there)
            bars.start()
        else:
            bars.reset(self._task, total=total, completed=there)

    def advance(self, path: str, bytes_done: int) -> None:
        before = self._done.get(path, 0)
        self._done[path] = bytes_done
        self.moved += bytes_done - before
        self._moved += bytes_done - before
        if self._bars and self._task is not None:
            self._bars.update(self._task, advance=bytes_done - before)
            self._show_file(self._bars, path, bytes_done)
            return
        total = sum(self._sizes.values())
        done = sum(self._done.values())
        if total and (tenth := 10 * done // total) > self._tenth:
            self._tenth = tenth
            print_note(f"{self._what}: {tenth}0 %{self._rate(total - done)}")

    def _show_file(self, bars: "Bars", path: str, bytes_done: int) -> None:
        """Give a file that moves a bar, as long as it is not whole and there is room."""
        whole = self._sizes.get(path, 0)
        if bytes_done >= whole:
            if (task := self._shown.pop(path, None)) is not None:
                bars.remove_task(task)
        elif path in self._shown:
            bars.update(self._shown[path], completed=bytes_done)
        elif len(self._shown) < _MOST_BARS:
            name = clean(path) if len(path) <= _LONGEST_NAME else f"…{clean(path[-_LONGEST_NAME:])}"
            self._shown[path] = bars.add_task(f"  {name}", total=whole, completed=bytes_done)

    def _rate(self, left: int) -> str:
        seconds = time.monotonic() - self._since
        if not self._moved or seconds < 1:
            return ""
        rate = self._moved / seconds
        return f", {size(int(rate))}/s, {duration(left / rate)} left" if left else ""


@contextmanager
def transfer(what: str, before: str = "") -> Iterator[Transfer]:
    """Show a transfer while the block runs: from its plan on, and until then the text ``before``
    with a spinner."""
    with waiting(before) as spinner:
        if not sys.stderr.isatty():
            yield Transfer(what, None, spinner)
            return
        bars = _bars()
        try:
            yield Transfer(what, bars, spinner)
        finally:
            bars.stop()


def _bars() -> "Bars":
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
    return Progress(*columns, console=console(sys.stderr))
