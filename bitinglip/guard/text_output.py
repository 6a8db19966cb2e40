"""Guards generated text: of each choice its content, its reasoning and its calls of tools.

Each of them is a text of its own, which is looked at by itself while it comes; what is held back of
one does not hold up the others.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from bitinglip.guard.checked import TextCheck
from bitinglip.guard.escapes import Escapes
from bitinglip.guard.scanner import Piece
from workers import protocol

NewCheck = Callable[[], TextCheck]


class _Delta(NamedTuple):
    """Holds a delta that is not sent in full yet; it covers some of the worker's text."""

    start: int
    end: int
    token: int  #: the index of its last one
    logprobs: tuple[protocol.TokenLogprob, ...]


class _Text:
    """Checks reasoning, or with ``escapes`` the arguments of a call, which are JSON."""

    def __init__(self, checked: TextCheck, escapes: Escapes | None = None) -> None:
        self.checked = checked
        self._escapes = escapes
        self.came = 0  #: characters
        self._shown: list[str] = []

    def feed(self, text: str, *, last: bool = False) -> str:
        """Return what may be shown now. Raises what ``TextCheck.feed`` raises."""
        self.came += len(text)
        if self._escapes is None:
            shown = "".join([piece.text for piece in self.checked.feed(text, last=last)])
        else:
            read = self._escapes.feed(text, last=last)
            shown = self._escapes.shown(self.checked.feed(read, last=last))
        self._shown.append(shown)
        return shown

    @property
    def shown(self) -> str:
        return "".join(self._shown)


class _Call:
    """Checks a call of a tool: its name at once, and its arguments as they come."""

    def __init__(self, call_id: str, name: str, new_check: NewCheck) -> None:
        self._name = _Text(new_check())
        self.id = call_id
        self.name = self._name.feed(name, last=True)
        self.arguments = _Text(new_check(), Escapes())

    def checks(self) -> tuple[TextCheck, TextCheck]:
        return self._name.checked, self.arguments.checked


class _Content:
    """Checks content, and the tokens and log-probabilities that would tell it."""

    def __init__(self, checked: TextCheck) -> None:
        self.checked = checked
        self.came = 0  #: characters of the worker's text
        self.index = 0  #: of the last token that is told
        self.shown: list[str] = []
        self.logprobs: list[protocol.TokenLogprob] = []
        self._told = 0
        self._pending: deque[_Delta] = deque()
        self._gaps: list[tuple[int, int]] = []  #: where something was left out

    def take(self, event: protocol.TextDelta) -> tuple[str, tuple[protocol.TokenLogprob, ...]]:
        """Return the text and the log-probabilities to show now."""
        start, self.came = self.came, self.came + len(event.text)
        logprobs = event.logprobs if self._are_of(event) else ()
        self._pending.append(_Delta(start, self.came, event.index, logprobs))
        return self.release(self.checked.feed(event.text))

    def release(self, pieces: Iterable[Piece]) -> tuple[str, tuple[protocol.TokenLogprob, ...]]:
        """Show the pieces, with the tokens whose text is told in full."""
        text = ""
        logprobs: tuple[protocol.TokenLogprob, ...] = ()
        for piece in pieces:
            if piece.replaced:
                self._gaps.append((self._told, self._told + piece.size))
            self._told += piece.size
            text += piece.text
        while self._pending and self._pending[0].end <= self._told:
            delta = self._pending.popleft()
            self.index = delta.token
            if not self._touches_gap(delta):
                logprobs += delta.logprobs
        if self._pending and self._pending[0].start < self._told:
            self.index = self._pending[0].token
        self.shown.append(text)
        self.logprobs += logprobs
        return text, logprobs

    def _are_of(self, event: protocol.TextDelta) -> bool:
        """Return whether the tokens hold the text of the delta and nothing that is held back."""
        if self.checked.mode != "redact" or not event.logprobs:
            return True
        return "".join([each.token for each in event.logprobs]) == event.text

    def _touches_gap(self, delta: _Delta) -> bool:
        """Return whether any of the delta's text was left out, or is next to what was."""
        while self._gaps and self._gaps[0][1] < delta.start:
            del self._gaps[0]
        return bool(self._gaps) and self._gaps[0][0] <= delta.end


class _Choice:
    """Checks all that one choice says."""

    def __init__(self, number: int, new_check: NewCheck) -> None:
        self._number = number
        self._new_check = new_check
        self._content = _Content(new_check())
        self._reasoning: _Text | None = None
        self._calls: dict[int, _Call] = {}

    def checks(self) -> Iterator[TextCheck]:
        yield self._content.checked
        if self._reasoning is not None:
            yield self._reasoning.checked
        for call in self._calls.values():
            yield from call.checks()

    def take(self, event: protocol.TextDelta) -> protocol.TextDelta | None:
        """Return what to show now of a delta and of those before it, if there is anything."""
        text, logprobs = self._content.take(event)
        reasoning = self._think(event.reasoning) if event.reasoning else ""
        calls = tuple(self._call(each) for each in event.tool_calls)
        return self._delta(event.id, text, logprobs, reasoning, calls)

    def take_whole(self, choice: protocol.TextChoice) -> None:
        """Take a text that was not streamed."""
        self._content.release(self._content.checked.feed(choice.text))
        self._content.came = len(choice.text)
        if choice.reasoning:
            self._think(choice.reasoning)
        for index, call in enumerate(choice.tool_calls):
            self._call(
                protocol.ToolCallDelta(
                    index=index, id=call.id, name=call.name, arguments=call.arguments
                )
            )

    def has_all(self, choice: protocol.TextChoice) -> bool:
        """Return whether all of a text has come in deltas."""
        reasoning = self._reasoning.came if self._reasoning is not None else 0
        came = [self._content.came, reasoning]
        came += [call.arguments.came for call in self._calls.values()]
        arguments = [len(call.arguments) for call in choice.tool_calls]
        return came == [len(choice.text), len(choice.reasoning), *arguments]

    def end(self, job_id: str) -> protocol.TextDelta | None:
        """Return what was held back so far."""
        text, logprobs = self._content.release(self._content.checked.feed("", last=True))
        reasoning = "" if self._reasoning is None else self._reasoning.feed("", last=True)
        calls = [
            self._call_delta(index, call.arguments.feed("", last=True))
            for index, call in self._calls.items()
        ]
        rest = tuple(each for each in calls if each.arguments)
        return self._delta(job_id, text, logprobs, reasoning, rest)

    def shown(self, choice: protocol.TextChoice) -> protocol.TextChoice:
        """Return a choice that has ended as it may be shown."""
        redacted = any(each.redacted for each in self.checks())
        return msgspec.structs.replace(
            choice,
            text="".join(self._content.shown),
            logprobs=tuple(self._content.logprobs) if redacted else choice.logprobs,
            reasoning="" if self._reasoning is None else self._reasoning.shown,
            tool_calls=tuple(
                protocol.ToolCall(id=call.id, name=call.name, arguments=call.arguments.shown)
                for call in self._calls.values()
            ),
        )

    def _think(self, text: str) -> str:
        if self._reasoning is None:
            self._reasoning = _Text(self._new_check())
        return self._reasoning.feed(text)

    def _call(self, event: protocol.ToolCallDelta) -> protocol.ToolCallDelta:
        if event.index not in self._calls:
            self._calls[event.index] = _Call(event.id, event.name, self._new_check)
        return self._call_delta(
            event.index, self._calls[event.index].arguments.feed(event.arguments)
        )

    def _call_delta(self, index: int, arguments: str) -> protocol.ToolCallDelta:
        call = self._calls[index]
        return protocol.ToolCallDelta(index=index, id=call.id, name=call.name, arguments=arguments)

    def _delta(
        self,
        job_id: str,
        text: str,
        logprobs: tuple[protocol.TokenLogprob, ...],
        reasoning: str,
        calls: tuple[protocol.ToolCallDelta, ...],
    ) -> protocol.TextDelta | None:
        if not (text or logprobs or reasoning or calls):
            return None
        return protocol.TextDelta(
            id=job_id,
            text=text,
            index=self._content.index,
            logprobs=logprobs,
            choice=self._number,
            reasoning=reasoning,
            tool_calls=calls,
        )


class TextOutput:
    """Guards the texts of one job."""

    def __init__(self, work: protocol.TextJob, check: NewCheck) -> None:
        self.work = msgspec.structs.replace(work, stream=True)
        self._streams = work.stream
        self._new_check = check
        self.reset()

    def reset(self) -> None:
        self._choices: dict[int, _Choice] = {}

    @property
    def altered(self) -> bool:
        return any(each.altered for choice in self._choices.values() for each in choice.checks())

    def take(self, event: protocol.JobEvent) -> Sequence[protocol.JobEvent]:
        match event:
            case protocol.TextDelta():
                shown = self._choice(event.choice).take(event)
                return (shown,) if shown is not None and self._streams else ()
            case protocol.TextDone():
                return self._take_done(event)
            case _:
                return (event,)

    def _take_done(self, done: protocol.TextDone) -> Sequence[protocol.JobEvent]:
        told = list(enumerate(done.choices))
        streamed = all(self._choice(number).has_all(choice) for number, choice in told)
        if not streamed:  # the engine has streamed nothing, or something else
            self.reset()
            for number, choice in told:
                self._choice(number).take_whole(choice)
        rest = [self._choice(number).end(done.id) for number, _ in told]
        choices = tuple(self._choice(number).shown(choice) for number, choice in told)
        events = [each for each in rest if each is not None] if streamed and self._streams else []
        return (*events, msgspec.structs.replace(done, choices=choices))

    def _choice(self, number: int) -> _Choice:
        choice = self._choices.get(number)
        if choice is None:
            choice = self._choices[number] = _Choice(number, self._new_check)
        return choice
