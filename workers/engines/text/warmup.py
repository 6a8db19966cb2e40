"""Runs jobs of the largest shapes that an engine computes, once at load.

Their memory is then measured with the load, and not found out by the first long prompt.
"""

import logging
import time
from typing import Any, Protocol

from workers.engines.text.preprocess import PreparedJob, PreparedPrompt
from workers.engines.text.scheduler import Scheduler
from workers.protocol import Sampling, TextJob

log = logging.getLogger(__name__)

_TOKENS = 3  #: of each answer: the first comes with its prompt, the others in steps of all rows

_STEP_SECONDS = 0.15  #: that a step with a prompt may take
_LEAST_STEP = 256  #: tokens: fewer do not use a card


def largest_jobs(
    *, rows: int, step_tokens: int, context: int, vocab_size: int
) -> list[PreparedJob]:
    """Return a prompt that fills a step, and short ones for all other rows."""
    longest = max(1, min(step_tokens, context - _TOKENS))
    tokens = max(1, min(_TOKENS, context - 1))
    sampling = Sampling(max_tokens=tokens, temperature=1.0, top_p=0.9, ignore_eos=True)
    ids = [(17 + 31 * place) % vocab_size for place in range(longest)]
    return [
        PreparedJob(
            job=TextJob(id=f"warm-up {row}", prompt="", sampling=sampling, stream=False),
            prompts=[PreparedPrompt(ids if row == 0 else ids[:1], tokens)],
            seed=row,
        )
        for row in range(rows)
    ]


def paced(step_tokens: int, tokens: int, seconds: float) -> int:
    """Return how many tokens a step should have, where so many have taken so many seconds.

    All that runs waits for a step, so a prompt's is to be short. Halves of the default only: the
    measured time varies, and the tokens of a step decide how a prompt's sums are rounded.
    """
    while step_tokens > _LEAST_STEP and seconds * step_tokens / tokens > _STEP_SECONDS:
        step_tokens //= 2
    return step_tokens


class RunsJobs(Protocol):
    """Computes jobs that were submitted, a step at a time."""

    def submit(self, prepared: PreparedJob) -> None: ...

    def step(self) -> Any: ...

    @property
    def in_flight(self) -> int: ...


class WarmUp:
    """Runs the largest jobs of an engine that has just been loaded, and paces its steps by them."""

    def __init__(
        self, engine: RunsJobs, scheduler: Scheduler, *, context: int, vocab_size: int
    ) -> None:
        """``context``: tokens of a prompt and its answer, at most."""
        self._engine = engine
        self._scheduler = scheduler
        self._context = context
        self._vocab_size = vocab_size

    def run(self, rows: int) -> int:
        """Run jobs of the largest shapes to their ends; return the tokens of the longest prompt."""
        jobs = largest_jobs(
            rows=rows,
            step_tokens=self._scheduler.step_tokens,
            context=self._context,
            vocab_size=self._vocab_size,
        )
        for job in jobs:
            self._engine.submit(job)
        while self._engine.in_flight:
            self._engine.step()
        return len(jobs[0].prompts[0].ids)

    def pace(self) -> None:
        """Take smaller steps where a full one would hold up the answers that run for long."""
        usual, began = self._scheduler.step_tokens, time.monotonic()
        tokens = self.run(rows=1)
        step_tokens = paced(usual, tokens, time.monotonic() - began)
        if step_tokens < usual:
            self._scheduler.set_step(step_tokens)
            log.info("prompts are read %d tokens at a time, not %d", step_tokens, usual)
