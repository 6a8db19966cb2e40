"""OpenAI's surface takes these requests for text. A field that is not here is refused by name.

Our additional fields are ``top_k, min_p, repetition_penalty, ignore_eos``. ``user`` has no effect
and is not stored. A field typed ``AllowedValues`` takes
the values that change nothing (``n: 1``, ``store: false``), and no other.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.body import AllowedValues, Body, ModelName
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.text.fields import (
    MAX_TOKENS,
    ApiDefaults,
    Logprobs,
    MaxTokens,
    Messages,
    OneOrMore,
    SamplingFields,
    Stop,
)
from workers import protocol

CHAT_DEFAULTS = ApiDefaults(max_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0)
COMPLETION_DEFAULTS = ApiDefaults(max_tokens=16, temperature=1.0, top_p=1.0)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, AllowedValues((None, False))] = None


class _OpenAIFields(SamplingFields):
    """The fields that chat and completions share."""

    model: ModelName
    stop: Annotated[list[Stop], Field(max_length=4), OneOrMore] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    n: Annotated[Any, AllowedValues((None, 1))] = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' is only valid with 'stream'.", param="stream_options"
            )


class ChatCompletionRequest(_OpenAIFields):
    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    response_format: Annotated[Any, AllowedValues((None, {"type": "text"}))] = None
    modalities: Annotated[Any, AllowedValues((None, ["text"]))] = None
    service_tier: Annotated[Any, AllowedValues((None, "auto", "default"))] = None
    store: Annotated[Any, AllowedValues((None, False))] = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        self.check_stream_options()
        asked = self._asked_tokens()
        work = protocol.TextJob(
            id=new_task_id(),
            messages=tuple(message.to_job() for message in self.messages),
            sampling=self.sampling(
                context.model_settings.sampling,
                CHAT_DEFAULTS,
                max_tokens=asked,
                stop=self.stop,
                logprobs=self._asked_logprobs(),
            ),
            clip_max_tokens=asked is None,
            stream=bool(self.stream),
        )
        return context.job(work)

    @property
    def max_tokens_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def _asked_tokens(self) -> int | None:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(
                "'max_tokens' and 'max_completion_tokens' disagree.", param="max_completion_tokens"
            )
        return old if new is None else new

    def _asked_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs is not None:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        return None


def _one_prompt(value: Any) -> Any:
    """Take a string, or the only string of a list."""
    if not isinstance(value, list):
        return value
    if len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if value and not all(isinstance(each, str) for each in value):
        raise PydanticCustomError("unsupported", "is not supported as token ids, only as text")
    raise PydanticCustomError("unsupported", "is not supported with other than one text")


class CompletionRequest(_OpenAIFields):
    prompt: Annotated[str, BeforeValidator(_one_prompt, json_schema_input_type=str | list[str])]
    logprobs: Logprobs | None = None
    best_of: Annotated[Any, AllowedValues((None, 1))] = None
    echo: Annotated[Any, AllowedValues((None, False))] = None
    suffix: Annotated[Any, AllowedValues((None, ""))] = None

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        self.check_stream_options()
        work = protocol.TextJob(
            id=new_task_id(),
            prompt=self.prompt,
            sampling=self.sampling(
                context.model_settings.sampling,
                COMPLETION_DEFAULTS,
                max_tokens=self.max_tokens,
                stop=self.stop,
                logprobs=self.logprobs,
            ),
            clip_max_tokens=self.max_tokens is None,
            stream=bool(self.stream),
        )
        return context.job(work)
