"""Tells the traits of text: chats, completions and counts of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from sys import getsizeof
from typing import Any

import msgspec

from bitinglip.access.usage.amounts import NOTHING, Amounts, amounts
from bitinglip.work.sizes import CHARACTERS_PER_TOKEN, MESSAGE_TOKENS, utf8_bytes
from bitinglip.work.text_inputs import text_with, texts_of_text, with_sources
from bitinglip.work.traits import Most, Traits, replace
from workers import protocol

_AFFINITY_CHARACTERS = 1024
_TOKEN_BYTES = 36  #: of a token id in a tuple
_TREE_BYTES = 8  #: that a schema takes in memory for each byte of its JSON
_TEMPLATE_TOKENS = 128  #: that a chat template may add
#: Tokens of a picture where a model brings all to one size, as most do; and where it tiles them.
_LIKELY, _MOST_LIKELY = 576, 4096
_PIXELS_PER_TOKEN = 28 * 28

_json = msgspec.json.Encoder()


class Size(msgspec.Struct):
    """Tells how large what a job reads is: looked at once, and asked about at each step."""

    bytes: int = 0  #: in memory
    tokens: float = 0.0  #: of all prompts, as they are likely to be
    most_tokens: tuple[int, ...] = ()  #: of each prompt with its template, at the most
    pictures: tuple[protocol.Picture, ...] = ()


class TextTraits(Traits[protocol.TextJob]):
    """Counts tokens of prompts and of all texts that are made."""

    __slots__ = ("_size",)
    output = (protocol.TextDelta, protocol.TextDone)
    bytes_per_cost = 1 << 10
    guarded = "choices"
    makes = "text"

    def __init__(self, work: protocol.TextJob) -> None:
        self.work = work
        self._size: Size | None = None

    @property
    def size(self) -> Size:
        """Return the size of the input."""
        if self._size is None:
            self._size = _size_of(self.work)
        return self._size

    @property
    def operation(self) -> str:
        return "text_completion" if self.work.messages is None else "chat"

    @property
    def choices(self) -> int:
        return self.work.n

    def cost(self, _file_bytes: int) -> float:
        work = self.work
        return self.size.tokens + work.sequences * work.sampling.max_tokens

    def cost_done(self, final: protocol.Success | protocol.Cancelled) -> float | None:
        if isinstance(final, (protocol.TextDone, protocol.Cancelled)):
            return float(final.prompt_tokens + final.completion_tokens)
        return None

    def affinity(self) -> str:
        """Return the beginning: the turns of a conversation share it."""
        return _beginning(self.work)

    def input_bytes(self) -> int:
        return self.size.bytes

    def without_input(self) -> protocol.Job:
        """Return the message with as many empty prompts: their number tells that of choices.

        The files of pictures are named still: they are removed later.
        """
        pictures = self.size.pictures
        return replace(
            self.work,
            prompt=None,
            prompts=("",) * len(self.work.prompts),
            messages=(protocol.ChatMessage("user", "", pictures=pictures),) if pictures else None,
            tools=(),
            template_kwargs={},
            grammar=None,
        )

    def most_used(self, _file_bytes: int, context: int | None, _prompt_bytes: int = 0) -> Most:
        """Return the tokens; a token holds a byte at least. None of a job that counts only."""
        if self.work.count_only:
            return Most()
        return Most(_text_tokens(self.work, self.size.most_tokens, context))

    def used(self, events: Sequence[Any], last: protocol.Final | None) -> Amounts:
        if self.work.count_only:
            return NOTHING
        prompt, completion = self.tokens(events, last)
        return amounts((0, prompt, completion, 0, 0, 0))

    def tokens(self, events: Sequence[Any], last: protocol.Final | None) -> tuple[int, int]:
        if isinstance(last, protocol.TextDone) and last.prompt_tokens:
            return last.prompt_tokens, last.completion_tokens
        return super().tokens(events, last)

    def handed_over(self, events: Sequence[Any]) -> tuple[int, int]:
        sampled: dict[int, int] = {}
        for each in reversed(events):
            if len(sampled) == self.work.choices:
                break
            if isinstance(each, protocol.TextDelta):
                sampled.setdefault(each.choice, each.index + 1)
        prompt, _ = super().handed_over(events)
        return prompt, sum(sampled.values())

    def upload_paths(self) -> dict[str, str]:
        """Return the files of pictures, in their order; none before they are written."""
        if not (pictures := self.size.pictures):
            return {}
        sources = [each.source for each in pictures]
        return {
            f"picture_{n}": path for n, path in enumerate(sources) if path[:5].lower() != "data:"
        }

    def texts(self) -> dict[str, str]:
        return texts_of_text(self.work)

    def with_texts(self, texts: Mapping[str, str]) -> protocol.Job:
        return text_with(self.work, texts)

    def repeatable(self, seeded: bool) -> bool:  # noqa: ARG002  its sampling holds the seed
        return self.work.sampling.temperature == 0 or self.work.sampling.seed is not None

    def canonical(self, uploads: Mapping[str, str]) -> protocol.Job:
        messages = self.work.messages
        if uploads and messages is not None:
            messages = with_sources(messages, uploads.values())
        sampling = self.work.sampling
        bias = dict(sorted(sampling.logit_bias.items()))
        sampling = msgspec.structs.replace(sampling, logit_bias=bias)
        return replace(
            self.work,
            id="",
            messages=messages,
            stream=False,
            prefix_scope=None,
            sampling=sampling,
        )

    @staticmethod
    def pieces(done: protocol.TextDone) -> Iterator[protocol.JobEvent]:
        last = max(0, done.completion_tokens // len(done.choices) - 1)
        for number, choice in enumerate(done.choices):
            yield from _text_pieces(number, choice, last)


def likely_prompt_tokens(work: protocol.TextJob) -> int:
    """Return how many tokens the prompts of a job are likely to have."""
    return max(1, round(_size_of(work).tokens))


def _size_of(work: protocol.TextJob) -> Size:
    size = _size_of_prompts(work) if work.messages is None else _size_of_messages(work.messages)
    if work.grammar is not None:
        size.bytes += getsizeof(work.grammar.source)
    if work.tools:
        length = tools_bytes(work)
        size.bytes += length * _TREE_BYTES
        size.tokens += length / CHARACTERS_PER_TOKEN
        if work.messages is not None:
            size.most_tokens = (size.most_tokens[0] + _TEMPLATE_TOKENS + length,)
    if work.template_kwargs:
        size.bytes += len(_json.encode(work.template_kwargs)) * _TREE_BYTES
    return size


def _size_of_messages(messages: Sequence[protocol.ChatMessage]) -> Size:
    size, characters, tokens = 0, 0, _TEMPLATE_TOKENS
    pictures: list[protocol.Picture] = []
    for message in messages:
        tokens += MESSAGE_TOKENS * (1 + len(message.tool_calls))
        for text in message.texts():
            size += getsizeof(text)
            characters += len(text)
            tokens += utf8_bytes(text)
        if message.pictures:
            pictures += message.pictures
    likely = characters / CHARACTERS_PER_TOKEN
    for picture in pictures:
        spread = _spread(picture)
        size += getsizeof(picture.source)
        likely += _LIKELY + spread
        tokens += _MOST_LIKELY + spread
    return Size(size, likely, (tokens,), tuple(pictures))


def _size_of_prompts(work: protocol.TextJob) -> Size:
    size, likely = 0, 0.0
    most_tokens: list[int] = []
    for prompt in prompts_of(work):
        if isinstance(prompt, str):
            size += getsizeof(prompt)
            likely += len(prompt) / CHARACTERS_PER_TOKEN
            most_tokens.append(MESSAGE_TOKENS + utf8_bytes(prompt))
        else:
            size += len(prompt) * _TOKEN_BYTES
            likely += len(prompt)
            most_tokens.append(MESSAGE_TOKENS + len(prompt))
    return Size(size, likely, tuple(most_tokens))


def prompts_of(work: protocol.TextJob) -> tuple[protocol.Prompt, ...]:
    """Return the prompts of a job; none of one that has messages."""
    return work.prompts if work.prompt is None else (work.prompt,)


def tools_bytes(work: protocol.TextJob) -> int:
    """Return how long a job's tools are as JSON, as which templates write them into prompts."""
    return len(_json.encode(work.tools))


def _beginning(work: protocol.TextJob) -> str:
    for prompt in prompts_of(work)[:1]:
        return str(prompt[:_AFFINITY_CHARACTERS])
    start = "\0".join(message.content for message in (work.messages or ())[:2])
    return start[:_AFFINITY_CHARACTERS]


def _text_tokens(work: protocol.TextJob, prompts: Sequence[int], context: int | None) -> int:
    """Return the tokens of all prompts, of so many each, and of all texts made, at most."""
    of_each = work.best_of or work.n  #: texts of a prompt
    made = of_each * work.sampling.max_tokens
    if context is None:
        return sum(prompts) + work.sequences * work.sampling.max_tokens
    # A prompt counts once, and with each of its texts it is within the context.
    return sum([min(size + made, of_each * context) for size in prompts])


def _spread(picture: protocol.Picture) -> int:
    """Return the tokens of a model that reads a picture at its own size."""
    return picture.width * picture.height // _PIXELS_PER_TOKEN


def _text_pieces(
    number: int, choice: protocol.TextChoice, last: int
) -> Iterator[protocol.TextDelta]:
    calls = tuple(
        protocol.ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
        for index, call in enumerate(choice.tool_calls)
    )
    if choice.text or choice.logprobs or choice.reasoning or calls:
        yield protocol.TextDelta(
            id="",
            text=choice.text,
            index=last,
            logprobs=choice.logprobs,
            choice=number,
            reasoning=choice.reasoning,
            tool_calls=calls,
        )
