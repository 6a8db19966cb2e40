"""Turns the streamed answer of an OpenAI-compatible server into the events of a job. Pure."""

from dataclasses import dataclass, field
from typing import Any

from bitinglip.work.sizes import CHARACTERS_PER_TOKEN
from workers.protocol import (
    Event,
    FinishReason,
    TextChoice,
    TextDelta,
    TextDone,
    TextJob,
    ToolCall,
    ToolCallDelta,
)

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


#: characters of an answer: its final event has to fit into one frame
_MOST_TEXT = 15 << 20
#: characters of any answer, and those of each token, of which the longest are runs of spaces
_ANY_TEXT, _TOKEN_TEXT = 1 << 16, 256
#: pieces of an answer, and those that each token allows beside them: as many as the check of events
_MOST_PIECES, _PIECES_PER_TOKEN = 1 << 17, 4
_MOST_CALLS = 1 << 10  #: calls of tools in one piece
#: bytes of a character at most, escaped, and of what is around a piece: names, ids, comments
_CHARACTER_BYTES, _PIECE_BYTES = 6, 1 << 10
_MOST_COUNT = 2**31 - 1


class BadAnswer(Exception):
    """The server sent a response that is not one of this API."""


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    finish: FinishReason | None = None
    pieces: int = 0  #: that have come


class AnswerReader:
    """Reads the chunks of one job's answer."""

    def __init__(self, job: TextJob) -> None:
        self._job = job
        self._choices = [_Choice() for _ in range(job.choices)]
        self._usage: dict[str, Any] = {}
        self._most_tokens = tokens = job.sampling.max_tokens * job.choices
        self._pieces_left = _MOST_PIECES + _PIECES_PER_TOKEN * tokens
        self._most_text = min(_MOST_TEXT, _ANY_TEXT + _TOKEN_TEXT * tokens)
        self.text = 0  #: characters that have come
        self._likely_prompt = 0
        #: what the answer may have, with all that is no text of it
        self.most_bytes = _CHARACTER_BYTES * self._most_text + _PIECE_BYTES * self._pieces_left

    def begin(self, prompt_tokens: int) -> None:
        """Note that a server has taken the request, and how many tokens its prompt may have."""
        self._likely_prompt = prompt_tokens

    @property
    def used(self) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer so far.

        They are estimated where the server does not tell, or not yet: a client that leaves before
        the last event has had the answer, too. An estimate is never above what was asked for.
        """
        pieces = sum(choice.pieces for choice in self._choices)
        made = max(pieces, round(self.text / CHARACTERS_PER_TOKEN))
        return (
            _count(self._usage, "prompt_tokens") or self._likely_prompt,
            _count(self._usage, "completion_tokens") or min(made, self._most_tokens),
        )

    def take(self, chunk: Any) -> list[Event]:
        """Return the events of a chunk. Raises BadAnswer, also for more than the job allows."""
        try:
            if isinstance(usage := chunk.get("usage"), dict):
                self._usage = usage
            events: list[Event] = []
            self._spend(1)  # also for one that holds nothing: they must not go on for ever
            choices = chunk.get("choices") or ()
            if len(choices) > len(self._choices):  # before they are looked at, which takes a while
                raise BadAnswer("The upstream's answer has more choices than were asked for.")
            for each in choices:
                events += self._take_choice(each)
            return events if self._job.stream else []
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise BadAnswer("The upstream's answer has another form.") from error

    def done(self) -> TextDone:
        """Return the final event. Raises BadAnswer for an answer that ends early."""
        if any(choice.finish is None for choice in self._choices):
            raise BadAnswer("The upstream's answer ended before its end.")
        details = self._usage.get("prompt_tokens_details")
        prompt, completion = self.used
        return TextDone(
            id=self._job.id,
            choices=tuple(_text_choice(choice) for choice in self._choices),
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=_count(details, "cached_tokens") if isinstance(details, dict) else 0,
        )

    def _take_choice(self, each: dict[str, Any]) -> list[Event]:
        number = each.get("index") or 0
        if type(number) is not int or number < 0:
            raise TypeError
        choice = self._choices[number]
        delta = each.get("delta") or {}
        text = each.get("text") or delta.get("content") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        called = delta.get("tool_calls") or ()
        if len(called) > _MOST_CALLS:
            raise BadAnswer("The upstream's answer calls more tools than any.")
        calls = tuple(_take_call(choice, call) for call in called)
        if (finish := each.get("finish_reason")) is not None:
            choice.finish = _REASONS.get(finish, "stop")
        if not (text or reasoning or calls):
            return []
        if not (isinstance(text, str) and isinstance(reasoning, str)):
            raise TypeError
        names = sum(len(each.arguments) + len(each.id) + len(each.name) for each in calls)
        self._spend(1 + len(calls), len(text) + len(reasoning) + names)
        choice.text.append(text)
        choice.reasoning.append(reasoning)
        choice.pieces += 1
        index = choice.pieces - 1
        return [
            TextDelta(
                id=self._job.id,
                text=text,
                index=index,
                choice=number,
                reasoning=reasoning,
                tool_calls=calls,
            )
        ]

    def _spend(self, pieces: int, text: int = 0) -> None:
        """Hold a server to the bounds of the job, as workers are held. Raises BadAnswer."""
        self._pieces_left -= pieces
        self.text += text
        if self._pieces_left < 0 or self.text > self._most_text:
            raise BadAnswer("The upstream's answer is longer than any that was asked for.")


def _take_call(choice: _Choice, call: dict[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    number = call.get("index", len(choice.calls))
    if number == len(choice.calls):
        choice.calls.append(_Call(str(call["id"]), str(function["name"])))
    if type(number) is not int or number < 0:
        raise TypeError
    known = choice.calls[number]
    piece = function.get("arguments") or ""
    if not isinstance(piece, str):
        raise TypeError
    known.arguments.append(piece)
    return ToolCallDelta(index=number, id=known.id, name=known.name, arguments=piece)


def _text_choice(choice: _Choice) -> TextChoice:
    return TextChoice(
        text="".join(choice.text),
        finish_reason=choice.finish or "stop",
        reasoning="".join(choice.reasoning),
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments))
            for call in choice.calls
        ),
    )


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return min(value, _MOST_COUNT) if type(value) is int and value >= 0 else 0
