"""Queues a step on the device, and reads its tokens when they are wanted.

Between the two the host may plan and queue the next step: the tokens that this one chooses go into
it on the device.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.engines.text.batch import Carry
from workers.engines.text.generation import Generation
from workers.engines.text.grammar.rows import ConstrainedRows
from workers.engines.text.logprobs import Logprobs
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.runner import Runner
from workers.engines.text.sample import Choice, Sample
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import upload
from workers.engines.text.scores import Scores, prompt_scores
from workers.engines.text.sequential import SequentialRunner
from workers.engines.text.speculation import sampled_places

#: Stands for the token of a row that none can be chosen for yet.
NONE = Choice(-3)


#: A row of a step's logits: its sequence, and how many drafts are before it.
Place = tuple[Sequence, int]


class Flight:
    """Holds a step that is queued on the device, until its tokens have been read."""

    def __init__(
        self,
        plan: Plan,
        order: list[Chunk],
        places: list[Place],
        chosen: list[Place],
        sample: Sample | None,
        scores: Scores,
    ) -> None:
        """``order``: the chunks that sample, ``places``: their rows, ``chosen``: the rows that
        ``sample`` has tokens for."""
        self.plan = plan
        self.order = order
        self.void: set[Sequence] = set()  #: those whose input here was no token: computed again
        #: blocks that the step writes for texts that have ended: free once it has landed
        self.held: dict[Sequence, list[int]] = {}
        self._places = places
        self._chosen = chosen
        self._sample = sample
        self._scores = scores
        self._sequences = {chunk.sequence for chunk in plan.chunks}
        self._found: tuple[list[Choice], set[Sequence]] | None = None

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    @property
    def carry(self) -> Carry | None:
        """Return the tokens that it chooses, on the device."""
        if self._sample is None:
            return None
        rows = {sequence: row for row, (sequence, _) in enumerate(self._chosen)}
        return Carry(self._sample.tokens, rows)

    @torch.inference_mode()
    def count(self) -> None:
        """Count the tokens for the penalties of the next step; last, see ``Sample.count``."""
        if self._sample is not None:
            self._sample.count()

    @torch.inference_mode()
    def collect(self, *, decide: bool = True) -> tuple[list[Choice], set[Sequence]]:
        """Wait for the step; return the choices of its rows, and what the host has decided.

        A step after it that is queued already has computed the latter from no token. Without
        ``decide`` they stay undecided.
        """
        if self._found is not None:
            return self._found
        if self._sample is None:
            return [NONE] * len(self._places), set()
        choices, late = self._sample.collect(decide=decide)
        made = dict(zip(self._chosen, choices, strict=True))
        found = [made.get(place, NONE) for place in self._places]
        self._found = found, {self._chosen[row][0] for row in late}
        return self._found

    def scores(self) -> list[tuple[Chunk, list[Logprobs]]]:
        """Return the log-probabilities of echoed prompts' tokens, by their chunks."""
        return [(chunk, each.read()) for chunk, each in self._scores]


class Launcher:
    """Queues plans: the model's forward pass, then the choice of tokens."""

    def __init__(
        self,
        runner: Runner | SequentialRunner,
        sampler: Sampler,
        constrained: ConstrainedRows,
        generations: Mapping[Sequence, Generation],
    ) -> None:
        """``generations``: the texts of all sequences in plans."""
        self._runner = runner
        self._sampler = sampler
        self._constrained = constrained
        self.generations = generations

    @torch.inference_mode()
    def launch(self, plan: Plan, carry: Carry | None) -> Flight:
        """Queue a plan; ``carry`` has the tokens that its sequences are promised."""
        order, logits, void = self._runner.launch(plan, carry)
        places = chosen = list(sampled_places(order))
        scores = prompt_scores(plan, logits[len(places) :], self._alternatives)
        logits = logits[: len(places)]
        if late := self._constrained.unready(chunk.sequence for chunk in order):
            rows = [row for row, (sequence, _) in enumerate(places) if sequence not in late]
            chosen = [places[row] for row in rows]
            logits = logits.index_select(0, upload(logits.device, ints={"rows": rows})["rows"])
        sample = self._choose(chosen, logits, void) if chosen else None
        return Flight(plan, order, places, chosen, sample, scores)

    def _choose(self, places: list[Place], logits: Tensor, void: Tensor | None) -> Sample:
        rows = [(self.generations[sequence], drafts) for sequence, drafts in places]
        return self._sampler.queue(
            logits,
            [each.sampling for each, _ in rows],
            [each.produced + each.sequence.promised + drafts for each, drafts in rows],
            void,
        )

    def _alternatives(self, sequence: Sequence) -> int:
        return self.generations[sequence].sampling.logprobs or 0
