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
from workers.engines.text.logprobs import Logprobs, PromptLogprobs
from workers.engines.text.plan import Chunk, Plan, Sequence
from workers.engines.text.runner import Runner
from workers.engines.text.sample import Choice, Sample
from workers.engines.text.sampler import Sampler
from workers.engines.text.sampling_params import upload
from workers.engines.text.sequential import SequentialRunner

#: Stands for the token of a row that none can be chosen for yet.
NONE = Choice(-3)


class Flight:
    """Holds a step that is queued on the device, until its tokens have been read."""

    def __init__(
        self,
        plan: Plan,
        order: list[Chunk],
        chosen: list[Chunk],
        sample: Sample | None,
        scores: list[tuple[Chunk, PromptLogprobs]],
    ) -> None:
        """``order``: the chunks that sample; ``chosen``: those of them that ``sample`` is for."""
        self.plan = plan
        self.order = order
        self.void: set[Sequence] = set()  #: those whose input here was no token: computed again
        #: blocks that the step writes for texts that have ended: free once it has landed
        self.held: dict[Sequence, list[int]] = {}
        self._chosen = chosen
        self._sample = sample
        self._scores = scores
        self._sequences = {chunk.sequence for chunk in plan.chunks}
        self._found: tuple[list[Choice], set[Sequence]] | None = None

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    @property
    def carry(self) -> Carry | None:
        """The tokens that it chooses, on the device."""
        if self._sample is None:
            return None
        rows = {chunk.sequence: row for row, chunk in enumerate(self._chosen)}
        return Carry(self._sample.tokens, rows)

    @torch.inference_mode()
    def count(self) -> None:
        """Count the tokens for the penalties of the next step; last, see ``Sample.count``."""
        if self._sample is not None:
            self._sample.count()

    @torch.inference_mode()
    def collect(self, *, decide: bool = True) -> tuple[list[Choice], set[Sequence]]:
        """Wait for the step; return its choices, in their order, and what the host has decided.

        A step after it that is queued already has computed the latter from no token. Without
        ``decide`` they stay undecided.
        """
        if self._found is not None:
            return self._found
        if self._sample is None:
            return [NONE] * len(self.order), set()
        choices, late = self._sample.collect(decide=decide)
        made = dict(zip((chunk.sequence for chunk in self._chosen), choices, strict=True))
        found = [made.get(chunk.sequence, NONE) for chunk in self.order]
        self._found = found, {self._chosen[row].sequence for row in late}
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
        scores = self._score(plan, logits[len(order) :])
        logits = logits[: len(order)]
        chosen = order
        if late := self._constrained.unready(chunk.sequence for chunk in order):
            rows = [row for row, chunk in enumerate(order) if chunk.sequence not in late]
            chosen = [order[row] for row in rows]
            logits = logits.index_select(0, upload(logits.device, ints={"rows": rows})["rows"])
        return Flight(plan, order, chosen, self._choose(chosen, logits, void), scores)

    def _choose(self, chunks: list[Chunk], logits: Tensor, void: Tensor | None) -> Sample | None:
        if not chunks:
            return None
        generations = [self.generations[chunk.sequence] for chunk in chunks]
        return self._sampler.queue(
            logits,
            [each.sampling for each in generations],
            [each.produced + each.sequence.promised for each in generations],
            void,
        )

    def _score(self, plan: Plan, logits: Tensor) -> list[tuple[Chunk, PromptLogprobs]]:
        """Queue the log-probabilities of echoed prompts' tokens. logits: [these tokens, vocab]"""
        scores = []
        start = 0
        for chunk in plan.prefills:
            if not chunk.scored:
                continue
            end = start + chunk.scored
            told = chunk.sequence.tokens[chunk.start + 1 :][: chunk.scored]
            tokens = upload(logits.device, ints={"tokens": told})["tokens"]
            count = self.generations[chunk.sequence].sampling.logprobs or 0
            scores.append((chunk, PromptLogprobs(logits[start:end], tokens, count)))
            start = end
        return scores
