"""A running request makes the texts of a job and returns its events."""

from itertools import count
from typing import Any

import msgspec

from workers.codes import Code
from workers.engines.text.detokenizer import DetokenizerFactory
from workers.engines.text.generation import Generation
from workers.engines.text.plan import Sequence
from workers.engines.text.prefix_keys import PrefixKeys
from workers.engines.text.preprocess import PreparedJob, PreparedPrompt
from workers.engines.text.sample import Choice
from workers.engines.text.sampling_params import SamplingParams
from workers.protocol import Cancelled, Event, Failed, Started, TextDelta, TextDone, TextJob


class Request:
    """Holds the state of a job between its submission and its final event.

    ``generations`` holds those of the first prompt, then those of the next one.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        factory: DetokenizerFactory,
        *,
        eos_ids: frozenset[int],
        vocab_size: int,
        block_size: int | None,
    ) -> None:
        """``block_size``: tokens of a block; None if sequences share no blocks."""
        job: TextJob = prepared.job
        self.job = job
        self.grammar = prepared.grammar
        self.ended = False
        self._seed = prepared.seed
        self._factory = factory
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._of_each = job.best_of or job.n
        self._ranks = self._of_each > job.n
        self._ends = frozenset(job.sampling.stop_token_ids)
        if not job.sampling.ignore_eos:
            self._ends |= eos_ids
        self._started = False
        self._prompt_tokens = sum(each.tokens for each in prepared.prompts)
        numbers = count()
        self.generations = [
            each for prompt in prepared.prompts for each in self._generations(prompt, numbers)
        ]
        self._running = len(self.generations)

    def _generations(self, prompt: PreparedPrompt, numbers: "count[int]") -> list[Generation]:
        """Make the generations of a prompt, which share what is computed of it."""
        job, sampling = self.job, self.job.sampling
        if self._ranks and sampling.logprobs is None:
            sampling = msgspec.structs.replace(sampling, logprobs=0)
        shares = self._of_each > 1 and self._block_size is not None
        holders: list[Sequence] | None = [] if shares else None
        scores = job.echo and sampling.logprobs is not None
        settings: dict[str, Any] = {
            "max_tokens": prompt.max_tokens,
            "ends": self._ends,
            "streams": job.stream and not self._ranks,
            "echo": prompt.text if job.echo else "",
            "goes_on": not prompt.encoded and (job.messages is None or job.continue_final),
            "reading": prompt.reading,
        }
        return [
            Generation(
                Sequence(
                    job.id,
                    prompt.ids,
                    most=len(prompt.ids) + prompt.max_tokens,
                    scores=scores,
                    holders=holders,
                    keys=self._keys(),
                    inputs=prompt.inputs,
                    priority=job.priority,
                ),
                SamplingParams(
                    sampling,
                    self._seed,
                    prompt.ids,
                    self._vocab_size,
                    choice=number,
                    ends=self._ends,
                ),
                sampling,
                self._factory,
                number=next(numbers),
                **settings,
            )
            for number in range(self._of_each)
        ]

    def _keys(self) -> PrefixKeys | None:
        scope, size = self.job.prefix_scope, self._block_size
        if scope is None or size is None:
            return None
        return PrefixKeys(scope, size, lora=None if self.job.lora is None else self.job.lora.path)

    @property
    def produced(self) -> int:
        return sum(each.produced for each in self.generations)

    def begin(self) -> list[Event]:
        """Return the event of the job's start, once."""
        if self._started:
            return []
        self._started = True
        return [Started(id=self.job.id, prompt_tokens=self._prompt_tokens)]

    def cancelled(self) -> Cancelled:
        return Cancelled(
            id=self.job.id, prompt_tokens=self._prompt_tokens, completion_tokens=self.produced
        )

    def failed(self, code: Code, message: str) -> Failed:
        return Failed(id=self.job.id, code=code, message=message)

    def refused(self, message: str) -> Failed:
        """Return the end of a job whose client has asked for what does not work out."""
        return Failed(
            id=self.job.id,
            code="INVALID_REQUEST",
            message=message,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.produced,
        )

    def accept(self, generation: Generation, choice: Choice) -> list[Event]:
        """Take a sampled token; returns its text, if any, and the final event at the end."""
        return self._events(generation, generation.accept(choice))

    def complete(self, generation: Generation) -> list[Event]:
        """End a text that its grammar lets nothing follow; returns events as ``accept`` does."""
        return self._events(generation, generation.complete())

    def _events(self, generation: Generation, delta: TextDelta | None) -> list[Event]:
        events: list[Event] = [] if delta is None else [delta]
        if generation.ended:
            self._running -= 1
            if not self._running:
                self.ended = True
                events.append(self._done())
        return events

    def _done(self) -> TextDone:
        cached = sum(each.sequence.cached for each in self.generations[:: self._of_each])
        choices = [each.finished() for each in self._told()]
        if self._ranks and self.job.sampling.logprobs is None:
            choices = [msgspec.structs.replace(each, logprobs=()) for each in choices]
        return TextDone(
            id=self.job.id,
            choices=tuple(choices),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.produced,
            cached_tokens=cached,
            reasoning_tokens=sum(each.reasoning_tokens for each in self.generations),
            drafted_tokens=sum(each.drafted for each in self.generations),
            accepted_tokens=sum(each.accepted for each in self.generations),
        )

    def _told(self) -> list[Generation]:
        """Return the generations to tell: of each prompt the likeliest by token, best first."""
        if not self._ranks:
            return self.generations
        of_each, told = self._of_each, []
        for start in range(0, len(self.generations), of_each):
            made = self.generations[start : start + of_each]
            made.sort(key=lambda each: -each.likelihood())
            told += made[: self.job.n]
        return told
