"""Both text surfaces share these fields; every number has bounds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.settings import SamplingDefaults
from bitinglip.wire.body import AllowedValues, Body, Whole, coalesce, whole
from bitinglip.wire.plain import PlainReader, leaves_plain
from bitinglip.wire.text.pictures import ImageUrl, check_part, said
from bitinglip.wire.text.tools import MAX_CALLS, CallEntry, CallId
from workers import protocol
from workers.protocol.bounds import MOST_LOGPROBS, MOST_SEQUENCES

MAX_TOKENS = 1_000_000
MAX_MESSAGES = 4096
MAX_PARTS = 4096  #: of a message
_SEEDS = 2**64


def parts(value: Any) -> Any:
    """Return a message's content as a list of parts, as far as it is a string or null."""
    if value is None:
        return []
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


@leaves_plain
def at_most(value: Any) -> Any:
    """Return a whole number as an integer, and one beyond the most of this API as that.

    No model's context is as long, so that both are cut, or refused, alike.
    """
    number = whole(value)
    return MAX_TOKENS if isinstance(number, int) and number > MAX_TOKENS else number


@leaves_plain
def _limit(value: Any) -> Any:
    return None if value == -1 else at_most(value)


@leaves_plain
def _without_empty(value: Any) -> Any:
    return [each for each in value if each != ""] if isinstance(value, list) else value


@leaves_plain
def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


#: -1 is no limit, as null is
MaxTokens = Annotated[
    Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None,
    BeforeValidator(_limit, json_schema_input_type=int | None),
]
Logprobs = Annotated[int, Field(ge=0, le=20), Whole]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
StopTokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=64)]
Count = Annotated[int, Field(ge=1, le=MOST_SEQUENCES), Whole]  #: of choices
Stop = Annotated[str, Field(min_length=1, max_length=256)]
#: empty ones are none
Stops = Annotated[
    Annotated[list[Stop], Field(max_length=16)] | None,
    BeforeValidator(_without_empty, json_schema_input_type=list[str] | None),
]
OneOrMore = BeforeValidator(_listed, json_schema_input_type=str | list[str] | None)


def _text_parts(value: Any) -> Any:
    return value if value is None else parts(value)


Role = Literal["system", "developer", "user", "assistant", "tool"]


class Part(Body):
    """Holds a text or a picture of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _has_what_it_is(self) -> Self:
        check_part(self, self.type)
        if self.text is not None and self.image_url is not None:
            raise PydanticCustomError("value", "It has a text and a picture; send two parts")
        return self

    @property
    def picture(self) -> str | None:
        """Return the URL of a picture; None of a text."""
        return None if self.image_url is None else self.image_url.url


class Message(Body):
    """Holds a turn of a conversation; our own answers may be sent back as they are."""

    role: Role
    content: Annotated[
        list[Part] | None,
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_text_parts, json_schema_input_type=str | list[Part] | None),
    ] = None
    reasoning: str | None = None
    tool_calls: Annotated[list[CallEntry] | None, Field(max_length=MAX_CALLS)] = None
    tool_call_id: CallId | None = None
    refusal: Annotated[Any, AllowedValues((None,))] = None
    annotations: Annotated[Any, AllowedValues((None, []))] = None

    @model_validator(mode="after")
    def _content_is_there(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("missing", "has no content")
        return self

    def to_job(self) -> protocol.ChatMessage:
        return chat_message(
            self.role,
            self.content or (),
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
            reasoning=self.reasoning,
        )


_plain_part = PlainReader(Part, satisfied=("_has_what_it_is",))
PLAIN_MESSAGE = PlainReader(
    Message,
    {"content": (str, lambda text: [_plain_part.of({"type": "text", "text": text})])},
    satisfied=("_content_is_there",),
)


def chat_message(
    role: Role,
    content: Iterable[Part],
    name: str | None = None,
    *,
    tool_calls: Iterable[CallEntry] | None = None,
    tool_call_id: str | None = None,
    reasoning: str | None = None,
) -> protocol.ChatMessage:
    """Make the message to a worker: developers speak as the system, parts are joined.

    Only assistants call tools and reason, and only tools answer calls: others' are left out.
    """
    text, pictures = said(content)
    if role == "assistant" and (tool_calls or reasoning):
        calls = tuple(each.to_job() for each in tool_calls or ())
        return protocol.ChatMessage(
            role, text, name, tool_calls=calls, reasoning=reasoning, pictures=pictures
        )
    if role == "tool":
        return protocol.ChatMessage(role, text, name, tool_call_id=tool_call_id, pictures=pictures)
    role = "system" if role == "developer" else role
    return protocol.ChatMessage(role, text, name, pictures=pictures)


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


@dataclass(frozen=True)
class ApiDefaults:
    """Holds the defaults of one API for fields that the request omits."""

    max_tokens: int
    temperature: float
    top_p: float


class SamplingFields(Body):
    """Holds sampling parameters; ``null`` means no value: the model's default applies, then the
    API's."""

    max_tokens: MaxTokens = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  #: 0 keeps the likeliest token
    top_k: Annotated[int, Field(ge=-1, le=1_000_000), Whole] | None = None  #: 0 and -1 are off
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    #: no end token and no stop before so many
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), Whole] | None = None
    stop_token_ids: StopTokenIds | None = None
    n: Count | None = None  #: choices for each prompt
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), Whole] | None = None
    ignore_eos: bool | None = None

    @property
    def max_tokens_field(self) -> str:
        """Return the name by which the request has set it."""
        return "max_tokens"

    def sampling(
        self,
        own: SamplingDefaults,
        api: ApiDefaults,
        *,
        max_tokens: int | None,
        stop: list[str] | None,
        logprobs: int | None,
        sequences: int | None = None,
    ) -> protocol.Sampling:
        """Take the request's values, else the model's defaults, else the API's.

        sequences: how many texts are made; None: n. Raise InvalidRequest for more tokens or
        logprobs than an answer may hold, and for min_tokens above max_tokens.
        """
        most = _most_tokens(logprobs, sequences or self.n or 1)
        if max_tokens is not None and max_tokens > most:
            raise InvalidRequest(
                f"With so many texts and log-probabilities each text has {most} tokens at most; "
                "ask for fewer.",
                param=self.max_tokens_field,
                details={"max_tokens": most},
            )
        max_tokens = min(most, coalesce(max_tokens, own.max_tokens, api.max_tokens))
        if self.min_tokens is not None and self.min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens is more than max_tokens, which is {max_tokens}.", param="min_tokens"
            )
        fields: dict[str, Any] = {"top_k": own.top_k}
        if not self.model_fields_set.isdisjoint(_OTHERS):
            fields |= self._others()
        return protocol.Sampling(
            max_tokens=max_tokens,
            temperature=coalesce(self.temperature, own.temperature, api.temperature),
            top_p=coalesce(self.top_p, own.top_p, api.top_p),
            logprobs=logprobs,
            stop=tuple(stop) if stop else (),
            **fields,
        )

    def _others(self) -> dict[str, Any]:
        """Return the parameters that the request alone decides, where they change something.

        One that says what holds anyway is left out: the message, and so the cache's key of it, are
        those of a request without it.
        """
        fields: dict[str, Any] = {
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "min_tokens": self.min_tokens,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()},
            "seed": None if self.seed is None else self.seed % _SEEDS,
            "ignore_eos": self.ignore_eos,
        }
        given = {
            name: value
            for name, value in fields.items()
            if value is not None and value != _WITHOUT[name]
        }
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k) or None
        return given


#: what holds without a parameter
_WITHOUT = {each.name: each.default for each in msgspec.structs.fields(protocol.Sampling)}
#: the fields of ``SamplingFields._others``
_OTHERS = frozenset(SamplingFields.model_fields) - {"max_tokens", "temperature", "top_p", "n"}


def _most_tokens(logprobs: int | None, sequences: int) -> int:
    """Return how many tokens each of several texts may have, so that one answer holds them."""
    return (MAX_TOKENS if logprobs is None else MOST_LOGPROBS // (1 + logprobs)) // sequences
