"""Computes planned steps: one after the other or, if they overlap, the next one early.

A step that overlaps is queued while the one before is computed; only then are that one's tokens
read. What has turned out to have ended by then was computed for nothing in the step that is
queued: its token is dropped, and its blocks are free when that step has landed. So no block is
given away that a queued step writes to.
"""

from collections.abc import Callable, Iterable

import torch

from workers.engines import torch_env
from workers.engines.activity import FirstUse
from workers.engines.text.flight import Flight, Launcher
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.runner import Runner
from workers.engines.text.sample import BROKEN, Choice
from workers.engines.text.scheduler import MustLand, Scheduler
from workers.engines.text.scrubbing import Scrubber
from workers.engines.text.sequential import SequentialRunner
from workers.engines.text.speculation import Verified, by_chunk
from workers.protocol import Event


class Pipeline:
    """Owns the step in flight: queued on the device, its tokens not known yet."""

    def __init__(
        self,
        launcher: Launcher,
        runner: Runner | SequentialRunner,
        scheduler: Scheduler,
        scrubber: Scrubber,
        *,
        device: torch.device,
        overlaps: bool,
        take: Callable[[Verified], list[Event]],
        fail: Callable[[Chunk], list[Event]],
    ) -> None:
        """``take`` is given the tokens after each chunk that has some, ``fail`` a chunk for which
        memory does not suffice."""
        self._launcher = launcher
        self._runner = runner
        self._scheduler = scheduler
        self._scrubber = scrubber
        self._device = device
        self._overlaps = overlaps
        self._take = take
        self._fail = fail
        self._first_use = FirstUse()
        self._flight: Flight | None = None
        self._live = launcher.generations  #: those that go on

    @property
    def in_flight(self) -> bool:
        """Return whether a step has to land yet."""
        return self._flight is not None

    def plan(self) -> tuple[Plan, list[Event]]:
        """Plan a step; return it, and the events of the step in flight if that had to land."""
        try:
            return self._scheduler.schedule(in_flight=self.in_flight), []
        except MustLand:
            events = self.land()
            return self._scheduler.schedule(), events

    def run(self, plan: Plan, *, overlaps: bool) -> list[Event]:
        """Compute a plan, in smaller and smaller parts if it does not fit into memory.

        Where steps overlap and this one may, it is only queued, and the events are those of the
        step before.
        """
        overlaps = overlaps and self._overlaps
        flight = self._try(plan, collects=not overlaps)
        if flight is None:
            events = self.land()
            left = plan.of(self._live)
            return events + (self._run_in_parts(left) if left.chunks else [])
        self._scheduler.launched(plan)
        before, self._flight = self._flight, flight
        events = self._settle(before) if before is not None else []
        return events if overlaps else events + self.land()

    def land(self) -> list[Event]:
        """Take the tokens of the step in flight, if there is one."""
        flight, self._flight = self._flight, None
        return [] if flight is None else self._settle(flight)

    def end(self, sequence: Sequence) -> None:
        """Plan a sequence no more, and free its blocks once no step writes to them."""
        blocks = self._scheduler.withdraw(sequence)
        if self._flight is not None and sequence in self._flight:
            self._flight.held[sequence] = blocks
        else:
            self._scheduler.free(sequence, blocks)

    def _try(self, plan: Plan, *, collects: bool) -> Flight | None:
        """Queue a plan, or compute it as a whole; returns None if memory does not suffice.

        The error ends here: its traceback holds on to all that the failed step had computed, so
        nothing may be tried again while it is alive.
        """
        kind = "prompts" if plan.prefills else "tokens"
        carry = self._flight.carry if self._flight is not None else None
        try:
            with self._first_use.of(kind):
                flight = self._launcher.launch(plan, carry)
                if collects:
                    flight.collect()
                flight.count()
        except Exception as error:
            if not torch_env.is_out_of_memory(error):
                raise
            return None
        self._first_use.done(kind)
        return flight

    def _run_in_parts(self, plan: Plan) -> list[Event]:
        """Compute a plan that ran out of memory: free what is cached, then try half of it.

        Nothing of the plan was committed, so it can be computed again; a request fails only when
        one token of it alone is too much.
        """
        self._release_memory()
        parts = plan.halves()
        if not parts:
            return self._fail(plan.chunks[0])
        if plan.prefills:
            self._scheduler.limit_step(max(plan.tokens // 2, len(plan.decodes) + 1))
        events: list[Event] = []
        for part in parts:
            left = part.of(self._live)  # the part before may have ended a request
            events += self.run(left, overlaps=False) if left.chunks else []
        return events

    def _release_memory(self) -> None:
        self._runner.release_workspace()
        torch_env.release_cached(self._device)

    def _settle(self, flight: Flight) -> list[Event]:
        """Take a step's tokens; the one after it may be in flight already."""
        choices, decided = self._collect(flight)
        for chunk in flight.plan.chunks:
            if self._goes_on(chunk, flight):
                self._scheduler.landed(chunk)
        for chunk, found in flight.scores():
            if chunk.sequence in self._live:
                self._live[chunk.sequence].score(chunk.start, found)
        events: list[Event] = []
        rows = list(by_chunk(flight.order, choices))
        for row in rows:
            if self._goes_on(row.chunk, flight):
                events += self._take(row)
        for sequence in decided:
            self._compute_again(sequence)
        self._free_held(flight, rows)
        return events

    def _goes_on(self, chunk: Chunk, flight: Flight) -> bool:
        """Return whether what a step has computed of a sequence is of use.

        Not if the text ended with the step before, or its token there was decided too late.
        """
        return chunk.sequence in self._live and chunk.sequence not in flight.void

    def _collect(self, flight: Flight) -> tuple[list[Choice], set[Sequence]]:
        """Read a step's tokens; those that memory does not suffice to decide stay undecided."""
        try:
            return flight.collect()
        except Exception as error:
            if not torch_env.is_out_of_memory(error):
                raise
        self._release_memory()
        return flight.collect(decide=False)

    def _compute_again(self, sequence: Sequence) -> None:
        """Drop what the step in flight computes of a sequence: its input there was no token."""
        if self._flight is not None and sequence in self._flight and sequence in self._live:
            self._flight.void.add(sequence)
            self._scheduler.retract(sequence)

    def _free_held(self, flight: Flight, rows: Iterable[Verified]) -> None:
        """Free what a step has written for texts that had ended when it was computed."""
        for row in rows:
            blocks = flight.held.get(row.chunk.sequence)
            if blocks and row.choices[0].token == BROKEN:
                self._scrubber.scrub(blocks)
        for sequence, blocks in flight.held.items():
            self._scheduler.free(sequence, blocks)
