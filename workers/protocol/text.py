"""Declares messages about text: what a worker is asked for, and what it answers."""

from typing import Annotated, Any, Literal

import msgspec

from workers.protocol.bounds import Count, JobId, Name, Number
from workers.protocol.marks import OfJob, Succeeds

#: Forms of text that a grammar may ask for; ``lark`` is llguidance's dialect.
GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]

#: ``tool_calls``: the text ended as usual, and it calls tools.
FinishReason = Literal["stop", "length", "tool_calls"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Holds the sampling parameters. ``None`` means off; every number is checked before it gets
    here."""

    max_tokens: int
    temperature: float = 0.0  #: 0 is greedy: the arg max, ties to the lowest id
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  #: how many alternatives to report beside each sampled token
    #: The same seed gives the same tokens: on a CPU whatever runs beside it, on a card in the same
    #: batch, since products of other sizes round otherwise there.
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  #: before them no end token is sampled
    typical_p: float = 1.0
    ignore_eos: bool = False


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """Holds a call of a tool; ``arguments`` is the text of a JSON object, as the model wrote it."""

    id: Name
    name: Name
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """Holds the next piece of a tool call's arguments; each piece says which call it belongs to."""

    index: Count  #: of the call in its answer
    id: Name
    name: Name
    arguments: str


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Describes a function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False  #: the arguments are held to the schema


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Describes a form that the text is held to; ``source`` of a choice is a JSON
    list of strings."""

    kind: GrammarKind
    source: str
    strict: bool = False  #: refuse a schema that can be kept to only nearly
    param: str = "response_format"  #: the field of the request that asks for it


class Picture(msgspec.Struct, frozen=True, omit_defaults=True):
    """Holds a picture in a message.

    ``source``: the path of its file; before the gateway has written that, the ``data:`` URL.
    """

    source: str
    at: int  #: characters of the message's content that stand before it
    width: int = 0  #: pixels, as its header says
    height: int = 0


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    content: str
    name: str | None = None  #: of who speaks, for templates that have a place for it
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  #: of the call that a tool's message answers
    reasoning: str | None = None  #: what an assistant thought before its content
    pictures: tuple[Picture, ...] = ()  #: in the order of their places

    def parts(self) -> "list[str | Picture]":
        """Return the content's texts and pictures in their order; no text is empty."""
        found: list[str | Picture] = []
        start = 0
        for picture in self.pictures:
            found += [self.content[start : picture.at], picture]
            start = picture.at
        return [each for each in (*found, self.content[start:]) if each != ""]

    def texts(self) -> tuple[str, ...]:
        """Return all that a client wrote in it, which a template may write into the prompt."""
        if self.name is None and self.reasoning is None and not self.tool_calls:
            return (self.content,)
        others = [each for each in (self.name, self.reasoning) if each is not None]
        calls = [text for call in self.tool_calls for text in (call.name, call.arguments)]
        return (self.content, *others, *calls)


Prompt = str | tuple[int, ...]  #: a text or its tokens


class TextLora(msgspec.Struct, frozen=True):
    """Names a LoRA that a text is made with, beside the weights of its base."""

    path: str  #: the folder of its files; another one for other contents
    #: of its files, by their names: size, and when they were changed last in nanoseconds
    stamps: dict[str, tuple[int, int]] = {}


class TextJob(msgspec.Struct, tag="text", frozen=True, kw_only=True, omit_defaults=True):
    """Generate text from a prompt, or from messages through the model's chat template.

    Of ``prompts`` each is answered by itself: choice ``p * n + i`` is the i-th one of prompt p.
    """

    id: str
    prompt: str | None = None
    prompts: tuple[Prompt, ...] = ()  #: in place of ``prompt``
    messages: tuple[ChatMessage, ...] | None = None
    sampling: Sampling
    n: int = 1  #: how many choices to answer with, for each prompt
    #: how many to make for each prompt; the n likeliest by token are told, and no piece before
    best_of: int | None = None
    echo: bool = False  #: the text of a choice begins with its prompt
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  #: or none, required, or the name of a tool
    parallel_tool_calls: bool = True
    grammar: Grammar | None = None
    template_kwargs: dict[str, Any] = {}  #: further variables of the chat template
    continue_final: bool = False  #: the answer continues the last message, an assistant's
    generation_prompt: bool = True  #: the template writes the header of the model's turn
    special_tokens: bool = True  #: the tokenizer adds its own around a prompt, such as BOS
    clip_max_tokens: bool = False  #: cut max_tokens to what the context leaves, else refuse
    drop_turns: bool = False  #: leave out the oldest turns if the context has no room for all
    count_only: bool = False  #: tell how many tokens the prompt has, and make none
    stream: bool = True  #: without it, only the final event is sent
    #: jobs of equal scopes share what was computed of equal beginnings; None: with no other job
    prefix_scope: str | None = None
    lora: TextLora | None = None  #: None: the text is the model's own
    priority: int = 0  #: of those that run, the lowest give way first where memory lacks
    trace: str | None = None  #: the W3C's traceparent of its request, if that is traced

    @property
    def choices(self) -> int:
        """Return the number of texts to answer with."""
        return self.n * max(1, len(self.prompts))

    @property
    def sequences(self) -> int:
        """Return the number of texts to make."""
        return (self.best_of or self.n) * max(1, len(self.prompts))


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    id: Count
    logprob: Number | None  #: None for the first token of a prompt, which follows nothing
    top: tuple[tuple[str, Count, Number], ...] = ()  #: (token, id, logprob), best first


class TextDelta(OfJob, tag="text_delta", frozen=True, kw_only=True, omit_defaults=True):
    """Holds text that may be shown: never half a character, never part of a stop sequence."""

    id: JobId
    text: str
    index: Count  #: of the last sampled token this text comes from, from 0
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: Count = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class TextChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Holds one of the texts of a job, all of it, also when it was streamed."""

    text: str
    finish_reason: FinishReason
    stop: str | None = None  #: the stop string that ended it
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class TextDone(Succeeds, tag="text_done", frozen=True, kw_only=True, omit_defaults=True):
    """Ends a text job that succeeded."""

    id: JobId
    choices: Annotated[tuple[TextChoice, ...], msgspec.Meta(min_length=1)]
    prompt_tokens: Count
    completion_tokens: Count  #: every sampled token of all choices, the end tokens too
    cached_tokens: Count = 0  #: of the prompt tokens, those that were not computed again
    reasoning_tokens: Count = 0  #: of the completion tokens, those of reasoning
    drafted_tokens: Count = 0  #: by speculation
    accepted_tokens: Count = 0  #: of the drafted tokens, those that were right

    @property
    def text(self) -> str:
        """Return the first choice's text."""
        return self.choices[0].text
