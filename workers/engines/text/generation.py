"""Turns the tokens of one sequence into one text of its job's answer."""

from collections.abc import Iterable
from typing import Any, Literal

from workers.engines.stop_strings import StopFinder
from workers.engines.text.conversation import Reading
from workers.engines.text.detokenizer import DetokenizerFactory
from workers.engines.text.logprobs import Logprobs
from workers.engines.text.parsing.answer import AnswerParser, Piece
from workers.engines.text.plan import Sequence
from workers.engines.text.sample import Choice
from workers.engines.text.sampling_params import SamplingParams
from workers.protocol import (
    Sampling,
    TextChoice,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)


class Generation:
    """Holds the state of one text from the submission of its job to the text's end."""

    def __init__(
        self,
        sequence: Sequence,
        params: SamplingParams,
        sampling: Sampling,
        factory: DetokenizerFactory,
        *,
        number: int,
        max_tokens: int,
        ends: frozenset[int],
        streams: bool,
        echo: str = "",
        goes_on: bool = False,
        reading: Reading | None = None,
    ) -> None:
        """``number``: index of the choice. ``ends``: tokens that end it. ``streams``: deltas are
        emitted. ``echo``: text that comes before the first token's. ``goes_on``: the text continues
        the prompt's last message. ``reading``: how the text is parsed; None: it is not."""
        self.sequence = sequence
        self.sampling = params
        self.number = number
        self.produced = 0
        self.drafted = self.accepted = 0  #: tokens that were drafted, and those that were right
        self.ended = False
        self._max_tokens = max_tokens
        self._min_tokens = sampling.min_tokens
        self._ends = ends
        self._streams = streams
        self._factory = factory
        before = sequence.tokens if goes_on else ()
        self._detokenizer = factory.new(before, reading.form.kept if reading else frozenset())
        self._stops = StopFinder(sampling.stop)
        self._parser = None if reading is None else _parser(reading, self._stops)
        self.reasoning_tokens = 0
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._new = Piece()  #: what the last token has brought beside its text
        self._reason: Literal["stop", "length"] = "length"
        self._text: list[str] = []
        self._echo = echo
        self._prompt_logprobs: list[TokenLogprob] = []
        if sequence.scores:
            first = sequence.tokens[0]
            name = factory.token_text(first)
            self._prompt_logprobs.append(TokenLogprob(token=name, id=first, logprob=None))
        self._logprobs: list[TokenLogprob] = []
        self._logprobs_sent = 0

    @property
    def left(self) -> int:
        """Return how many tokens it may have beside those it has."""
        return self._max_tokens - self.produced

    def score(self, start: int, found: Iterable[Logprobs]) -> None:
        """Take the log-probabilities of the prompt's tokens after ``start``."""
        tokens = self.sequence.tokens
        del self._prompt_logprobs[start + 1 :]  # a preempted sequence is computed again
        for place, logprobs in enumerate(found, start + 1):
            self._prompt_logprobs.append(self._named(tokens[place], logprobs))

    def accept(self, choice: Choice) -> TextDelta | None:
        """Take a sampled token; returns the text to stream now, if there is any."""
        if not self.produced:
            self._begin()
        ended = choice.token in self._ends
        text = ""
        if self._max_tokens:
            self.sequence.tokens.append(choice.token)
            self.produced += 1
            if choice.logprobs is not None:
                self._logprobs.append(self._named(choice.token, choice.logprobs))
            text = "" if ended else self._push(self._detokenizer.push(choice.token))
        if ended or self._stopped or self.produced >= self._max_tokens:
            text += self._end(ended)
        return self._tell(text)

    def complete(self) -> TextDelta | None:
        """End the text, since nothing may follow; returns the text to stream now, if any."""
        if not self.produced:
            self._begin()
        return self._tell(self._end(ended=True))

    def _tell(self, text: str) -> TextDelta | None:
        if self._echo:
            text, self._echo = self._echo + text, ""
        if self._parser is not None:
            return self._parsed(text)
        if not text:
            return None
        self._text.append(text)
        if not self._streams:
            return None
        return self._delta(text)

    def _delta(self, text: str, **more: Any) -> TextDelta:
        new = tuple(self._logprobs[self._logprobs_sent :])
        self._logprobs_sent = len(self._logprobs)
        index = max(0, self.produced - 1)
        return TextDelta(
            id=self.sequence.id, text=text, index=index, logprobs=new, choice=self.number, **more
        )

    def _parsed(self, text: str) -> TextDelta | None:
        """Keep what the parser has found with this token; returns it if it is to be streamed."""
        new, self._new = self._new, Piece()
        if not (text or new.reasoning or new.tool_calls):
            return None
        start = len(self._calls)
        self._text.append(text)
        self._reasoning.append(new.reasoning)
        self._calls += new.tool_calls
        if not self._streams:
            return None
        calls = tuple(
            ToolCallDelta(index=index, id=each.id, name=each.name, arguments=each.arguments)
            for index, each in enumerate(new.tool_calls, start)
        )
        return self._delta(text, reasoning=new.reasoning, tool_calls=calls)

    def finished(self) -> TextChoice:
        """Return all of a text that has ended."""
        called = self._reason == "stop" and self._calls
        return TextChoice(
            text="".join(self._text),
            finish_reason="tool_calls" if called else self._reason,
            stop=self._stops.found,
            logprobs=tuple(self._logprobs),
            reasoning="".join(self._reasoning),
            tool_calls=tuple(self._calls),
        )

    def likelihood(self) -> float:
        """Return the mean log-probability of the sampled tokens."""
        sampled = self._logprobs[len(self._logprobs) - self.produced :]
        return sum(each.logprob or 0.0 for each in sampled) / max(1, self.produced)

    def _begin(self) -> None:
        """Leave the prompt: from here on the sequence has tokens of its own."""
        self.sequence.tokens = list(self.sequence.tokens)
        self.sequence.scores = False
        self._logprobs, self._prompt_logprobs = self._prompt_logprobs, []

    @property
    def _stopped(self) -> bool:
        return self._stops.stopped if self._parser is None else self._parser.stopped

    def _push(self, text: str) -> str:
        """Return what may be shown of a token's text; stop strings count from min_tokens on."""
        stops = self.produced >= self._min_tokens
        if self._parser is None:
            return self._stops.push(text) if stops else text
        reasoned = self._parser.reasons
        piece = self._parser.push(text, stops=stops)
        self.reasoning_tokens += reasoned or self._parser.reasons
        return self._note(piece)

    def _note(self, piece: Piece) -> str:
        """Keep what is not text for the event of this token; returns the text."""
        new = self._new
        self._new = Piece("", new.reasoning + piece.reasoning, new.tool_calls + piece.tool_calls)
        return piece.text

    def _end(self, ended: bool) -> str:
        """Note why the text ends; returns the rest of it."""
        text = ""
        if not self._stopped and self._parser is not None:
            text = self._note(self._parser.push(self._detokenizer.flush()))
            text += self._note(self._parser.end(cut=not ended)) if not self._stopped else ""
        elif not self._stopped:
            text = self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
        self.ended = True
        self.sequence.tokens = []  # other texts of the job may go on for long
        # The last bytes may complete a stop string: then that is why it ended.
        self._reason = "stop" if ended or self._stopped else "length"
        return text

    def _named(self, token: int, logprobs: Logprobs) -> TokenLogprob:
        name = self._factory.token_text
        top = tuple((name(other), other, logprob) for other, logprob in logprobs.top)
        return TokenLogprob(token=name(token), id=token, logprob=logprobs.chosen, top=top)


def _parser(reading: Reading, stops: StopFinder) -> AnswerParser:
    return AnswerParser(
        reading.form, reading.begun, reading.tools, stops, parallel=reading.parallel
    )
