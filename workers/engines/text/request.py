"""A running request takes sampled tokens and returns events."""

from typing import Literal

from workers.codes import Code
from workers.engines.stop_strings import StopFinder
from workers.engines.text.detokenizer import DetokenizerFactory
from workers.engines.text.preprocess import PreparedJob
from workers.engines.text.sampler import Choice, Logprobs
from workers.engines.text.sampling_params import SamplingParams
from workers.engines.text.scheduler import Sequence
from workers.protocol import (
    Cancelled,
    Event,
    Failed,
    Started,
    TextChoice,
    TextDelta,
    TextDone,
    TextJob,
    TokenLogprob,
)


class Request:
    """Holds the state of a job between its submission and its final event."""

    def __init__(
        self,
        prepared: PreparedJob,
        factory: DetokenizerFactory,
        *,
        eos_ids: frozenset[int],
        vocab_size: int,
    ) -> None:
        self.job: TextJob = prepared.job
        sampling = prepared.job.sampling
        prompt = prepared.prompt
        self.sequence = Sequence(self.job.id, list(prompt))
        self.sampling = SamplingParams(sampling, prepared.seed, prompt, vocab_size)
        self.produced = 0
        self.ended = False
        self._prompt_tokens = len(prompt)
        self._max_tokens = prepared.max_tokens
        self._ends = frozenset() if sampling.ignore_eos else eos_ids
        self._factory = factory
        self._detokenizer = factory.new()
        self._stops = StopFinder(sampling.stop)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._logprobs_sent = 0

    def started(self) -> Started:
        return Started(id=self.job.id, prompt_tokens=self._prompt_tokens)

    def cancelled(self) -> Cancelled:
        return Cancelled(
            id=self.job.id, prompt_tokens=self._prompt_tokens, completion_tokens=self.produced
        )

    def failed(self, code: Code, message: str) -> Failed:
        return Failed(id=self.job.id, code=code, message=message)

    def accept(self, choice: Choice) -> list[Event]:
        """Take a sampled token; returns its text, if any, and the final event at the end."""
        self.sequence.tokens.append(choice.token)
        self.produced += 1
        if choice.logprobs is not None:
            self._logprobs.append(self._named(choice.token, choice.logprobs))
        ended = choice.token in self._ends
        text = "" if ended else self._stops.push(self._detokenizer.push(choice.token))
        reason = self._reason(ended)
        if reason is not None and not self._stops.stopped:
            text += self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
        events: list[Event] = []
        if text:
            self._text.append(text)
            if self.job.stream:
                events.append(self._token(text))
        if reason is not None:
            self.ended = True
            # The last bytes may complete a stop string: then that is why it ended.
            events.append(self._done("stop" if self._stops.stopped else reason))
        return events

    def _reason(self, ended: bool) -> Literal["stop", "length"] | None:
        if ended or self._stops.stopped:
            return "stop"
        return "length" if self.produced >= self._max_tokens else None

    def _token(self, text: str) -> TextDelta:
        new = tuple(self._logprobs[self._logprobs_sent :])
        self._logprobs_sent = len(self._logprobs)
        return TextDelta(id=self.job.id, text=text, index=self.produced - 1, logprobs=new)

    def _done(self, reason: Literal["stop", "length"]) -> TextDone:
        return TextDone(
            id=self.job.id,
            choices=(
                TextChoice(
                    text="".join(self._text),
                    finish_reason=reason,
                    stop=self._stops.found,
                    logprobs=tuple(self._logprobs),
                ),
            ),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.produced,
        )

    def _named(self, token: int, logprobs: Logprobs) -> TokenLogprob:
        name = self._factory.token_text
        top = tuple((name(other), other, logprob) for other, logprob in logprobs.top)
        return TokenLogprob(token=name(token), id=token, logprob=logprobs.chosen, top=top)
