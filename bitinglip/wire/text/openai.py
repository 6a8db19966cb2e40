"""OpenAI's surface takes these requests for text; ``openai_body`` has the rules.

Our additional fields are ``top_k, min_p, typical_p, min_tokens, stop_token_ids,
repetition_penalty, ignore_eos, enable_thinking, chat_template_kwargs``, and those of ``forms``.
"""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.body import AllowedValues, ModelName
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import Label, OpenAIBody, OpenAIRequest
from bitinglip.wire.plain import PlainReader
from bitinglip.wire.text.extras import extra_fields
from bitinglip.wire.text.fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOKENS,
    ApiDefaults,
    Logprobs,
    MaxTokens,
    OneOrMore,
    Part,
    Role,
    SamplingFields,
    Stops,
    chat_message,
    parts,
)
from bitinglip.wire.text.forms import OpenAIForms
from bitinglip.wire.text.pictures import ImageUrl
from bitinglip.wire.text.prompt_end import PromptEndFields
from bitinglip.wire.text.switches import Switches
from bitinglip.wire.text.tools import (
    MAX_CALLS,
    MAX_TOOLS,
    CallId,
    OpenAICallEntry,
    OpenAIToolEntry,
    ToolChoice,
)
from workers import protocol

CHAT_DEFAULTS = ApiDefaults(max_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0)


class StreamOptions(OpenAIBody):
    include_usage: bool | None = None
    include_obfuscation: Label = None


def _address(value: Any) -> Any:
    """Return the address of a picture as an object, which some clients send as a text."""
    return {"url": value} if isinstance(value, str) else value


class OpenAIImageUrl(ImageUrl, OpenAIBody):
    detail: Label = None


class OpenAIPart(Part, OpenAIBody):
    image_url: Annotated[
        OpenAIImageUrl | None,
        BeforeValidator(_address, json_schema_input_type=str | OpenAIImageUrl | None),
    ] = None
    cache_control: Label = None
    prompt_cache_breakpoint: Label = None


def _turn_parts(value: Any, info: ValidationInfo) -> Any:
    """Return a turn's content as parts; null is for turns that may say nothing."""
    if value is None and info.data.get("role") in ("user", "system", "developer"):
        raise PydanticCustomError("missing", "is null; a text or a list of parts is needed")
    return parts(value)


class OpenAIMessage(OpenAIBody):
    """Holds a turn of a conversation; assistants' turns may be without content."""

    role: Role
    content: Annotated[
        list[OpenAIPart],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_turn_parts, json_schema_input_type=str | list[OpenAIPart] | None),
    ] = Field(default_factory=list)
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: Label = None
    annotations: Label = None
    tool_calls: Annotated[list[OpenAICallEntry] | None, Field(max_length=MAX_CALLS)] = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Annotated[Any, AllowedValues((None,))] = None
    audio: Annotated[Any, AllowedValues((None,))] = None
    cache_control: Label = None

    @model_validator(mode="after")
    def _content_is_there(self) -> Self:
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise PydanticCustomError("missing", "has no content")
        return self

    def to_job(self) -> protocol.ChatMessage:
        return chat_message(
            self.role,
            self.content,
            self.name,
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
            reasoning=self.reasoning_content or self.reasoning,
        )


class OpenAITextFields(OpenAIForms, SamplingFields, OpenAIRequest):
    """Holds the fields that chat and completions share."""

    model: ModelName
    stop: Annotated[Stops, OneOrMore] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Label = None
    metadata: Label = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' is only valid with 'stream'.", param="stream_options"
            )


class ChatCompletionRequest(Switches, PromptEndFields, OpenAITextFields):
    messages: Annotated[
        list[OpenAIMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    modalities: Annotated[Any, AllowedValues((None, ["text"]))] = None
    store: Annotated[Any, AllowedValues((None, False))] = None
    tools: Annotated[list[OpenAIToolEntry] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, AllowedValues((None, []))] = None
    function_call: Annotated[Any, AllowedValues((None, "auto", "none"))] = None
    audio: Annotated[Any, AllowedValues((None,))] = None
    prediction: Annotated[Any, AllowedValues((None,))] = None
    web_search_options: Annotated[Any, AllowedValues((None,))] = None
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    prompt_cache_options: Label = None
    prompt_cache_retention: Label = None
    moderation: Annotated[Any, AllowedValues((None,))] = None
    service_tier: Label = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        if self.stream_options is not None:
            self.check_stream_options()
        asked = self.max_completion_tokens
        messages = tuple([message.to_job() for message in self.messages])
        work = protocol.TextJob(
            id=new_task_id(),
            messages=messages,
            sampling=self.sampling(
                context.model_settings.sampling,
                CHAT_DEFAULTS,
                max_tokens=self.max_tokens if asked is None else asked,
                stop=self.stop,
                logprobs=self._asked_logprobs(),
            ),
            n=self.n or 1,
            clip_max_tokens=True,
            stream=bool(self.stream),
            prefix_scope=context.prefix_scope,
            **extra_fields(self, messages),
        )
        return context.job(work, session=self.prompt_cache_key)

    @property
    def max_tokens_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def _asked_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs is not None:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        return None


_part = PlainReader(OpenAIPart, satisfied=("_has_what_it_is",))
_message = PlainReader(
    OpenAIMessage,
    {"content": (str, lambda text: [_part.of({"type": "text", "text": text})])},
    satisfied=("_content_is_there",),
)
PlainReader(ChatCompletionRequest, nested=(_message, PlainReader(StreamOptions))).used()
