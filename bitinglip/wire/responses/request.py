"""OpenAI's surface takes this request for a response: a turn of a conversation, kept or not."""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job
from bitinglip.wire.body import AllowedValues, ModelName, coalesce
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import MOST_NAMED, Label, OpenAIBody, OpenAIRequest
from bitinglip.wire.responses.items import Input, Shown, chat_messages
from bitinglip.wire.responses.tools import LEFT_OUT, Choice, Tools, chosen, shown_choice
from bitinglip.wire.text.fields import (
    MAX_TOKENS,
    ApiDefaults,
    Logprobs,
    MaxTokens,
    SamplingFields,
)
from bitinglip.wire.text.forms import schema_grammar
from bitinglip.wire.text.switches import ReasoningEffort, Switches
from bitinglip.wire.text.tools import tool_fields
from workers import protocol

DEFAULTS = ApiDefaults(max_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0)
_LOGPROBS = "message.output_text.logprobs"
_SWITCHES = {"reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
_MOST_ECHOED = 64 << 10  #: bytes of a label as JSON; OpenAI's metadata have 10,000 characters

_json = msgspec.json.Encoder()


def _short(value: Any) -> Any:
    if len(_json.encode(value)) > _MOST_ECHOED:
        raise PydanticCustomError("too_long", "It is longer than 64 KiB")
    return value


#: A label that the response shows again: it is held for as long as that is made.
Echoed = Annotated[Label, AfterValidator(_short)]


class TextFormat(OpenAIBody):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing", "It has no 'schema'")
        return self

    def grammar(self) -> protocol.Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return protocol.Grammar(kind="json_object", source="", param="text.format")
        schema = self.json_schema or {}
        return schema_grammar(schema, "text.format.schema", strict=bool(self.strict))


class TextConfig(OpenAIBody):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


Summary = Literal["auto", "concise", "detailed", "none"]


class Reasoning(OpenAIBody):
    effort: ReasoningEffort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None  #: its name before

    @property
    def asked_summary(self) -> Summary | None:
        """Return how the reasoning is to be summarised: it is shown whole, as its summary."""
        asked = self.summary or self.generate_summary
        return None if asked == "none" else asked


class ResponsesRequest(SamplingFields, OpenAIRequest):
    """Asks for a response to items, after those of an earlier response if it names one."""

    model: ModelName
    input: Input = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    max_output_tokens: MaxTokens = None
    top_logprobs: Logprobs | None = None
    include: list[str] | None = None
    tools: Tools | None = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    metadata: Echoed = None
    stream_options: Label = None
    user: Echoed = None
    safety_identifier: Echoed = None
    prompt_cache_key: Echoed = None
    prompt_cache_retention: Label = None
    prompt_cache_options: Label = None
    service_tier: Label = None
    max_tool_calls: Label = None
    access_programs: Label = None
    background_options: Label = None
    image: Label = None
    conversation: Annotated[Any, AllowedValues((None,))] = None
    prompt: Annotated[Any, AllowedValues((None,))] = None
    moderation: Annotated[Any, AllowedValues((None,))] = None
    context_management: Annotated[Any, AllowedValues((None, []))] = None

    def ignored(self) -> list[str]:
        """Name the fields and the tools that were ignored."""
        hosted = {f"tools.{each.type}" for each in self.tools or () if each.type in LEFT_OUT}
        return [*super().ignored(), *sorted(hosted)][:MOST_NAMED]

    @property
    def stores(self) -> bool:
        """Return whether the response is kept. OpenAI's API keeps all unless told otherwise."""
        return self.store is not False

    @property
    def max_tokens_field(self) -> str:
        return "max_output_tokens"

    def to_job(self, context: JobContext, items: Sequence[Shown], job_id: str) -> Job:
        """Make the job of a response to these items. Raises InvalidRequest."""
        if self.background and not self.stores:
            raise InvalidRequest("'background' needs 'store'.", param="background")
        if not items:
            raise InvalidRequest("'input' is missing.", param="input")
        functions, choice = chosen(self.tool_choice, self.tools or [])
        form = self.text.format if self.text is not None else None
        work = protocol.TextJob(
            id=job_id,
            messages=chat_messages(self.instructions, items),
            sampling=self.sampling(
                context.model_settings.sampling,
                DEFAULTS,
                max_tokens=coalesce(self.max_output_tokens, self.max_tokens, None),
                stop=None,
                logprobs=self._asked_logprobs(),
            ),
            grammar=form.grammar() if form is not None else None,
            template_kwargs=self._switches().template_variables(),
            clip_max_tokens=True,
            drop_turns=self.truncation == "auto",
            stream=bool(self.stream or self.background),
            prefix_scope=context.prefix_scope,
            **tool_fields(functions, choice, parallel=self.parallel_tool_calls),
        )
        return context.job(work, session=self.prompt_cache_key)

    def _asked_logprobs(self) -> int | None:
        if self.top_logprobs is None and _LOGPROBS not in (self.include or ()):
            return None
        return self.top_logprobs or 0

    def unknown_switches(self, known: Collection[str] | None) -> list[str]:
        """Return the fields that a template which knows these switches does not know."""
        return [_SWITCHES[name] for name in self._switches().unknown_switches(known)]

    def _switches(self) -> Switches:
        effort = self.reasoning.effort if self.reasoning is not None else None
        verbosity = self.text.verbosity if self.text is not None else None
        return Switches(reasoning_effort=effort, verbosity=verbosity)

    def echo(self, job: Job) -> Shown:
        """Describe a response that has not begun: who asked for what."""
        work = job.work
        assert isinstance(work, protocol.TextJob)
        sampling = work.sampling
        tools = [shown for each in self.tools or () if (shown := each.shown()) is not None]
        return {
            "id": id_of_response(job.id),
            "object": "response",
            "created_at": int(job.created_at.timestamp()),
            "completed_at": None,
            "status": "queued" if self.background else "in_progress",
            "background": bool(self.background),
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "model": job.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": self._shown_reasoning(),
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.stores,
            "temperature": sampling.temperature,
            "text": self._shown_text(),
            "tool_choice": shown_choice(self.tool_choice),
            "tools": tools,
            "top_logprobs": self.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": self.truncation or "disabled",
            "usage": None,
            "user": self.user,
        }

    def _shown_reasoning(self) -> Shown:
        asked = self.reasoning or Reasoning()
        return {"effort": asked.effort, "summary": asked.asked_summary}

    def _shown_text(self) -> Shown:
        config = self.text or TextConfig()
        form: Shown = {"type": "text"}
        if config.format is not None:
            form = config.format.model_dump(by_alias=True, exclude_none=True)
        return {"format": form, "verbosity": config.verbosity or "medium"}


def id_of_response(task_id: str) -> str:
    return "resp_" + task_id.removeprefix("task-")


def task_id(response: str) -> str:
    """Return the id of the task that makes, or has made, a response."""
    return "task-" + response.removeprefix("resp_")
