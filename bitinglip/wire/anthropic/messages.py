"""Anthropic's surface takes these requests: for the next message, and for a count of tokens."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.wire.anthropic.blocks import AnthropicMessages, Texts, chat_messages
from bitinglip.wire.anthropic.tools import ToolChoice, Tools, chosen
from bitinglip.wire.body import AllowedValues, ModelName
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.openai_body import Label, OpenAIBody, OpenAIRequest
from bitinglip.wire.text.fields import MAX_TOKENS, ApiDefaults, MaxTokens, SamplingFields, Stops
from bitinglip.wire.text.forms import schema_grammar
from bitinglip.wire.text.switches import ReasoningEffort, Switches
from bitinglip.wire.text.tools import tool_fields
from workers import protocol

DEFAULTS = ApiDefaults(max_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0)
#: efforts that templates do not know stand for the highest that they do
_EFFORTS: dict[ReasoningEffort, ReasoningEffort] = {"xhigh": "high", "max": "high"}


class Thinking(OpenAIBody):
    """Says whether the model thinks first; how long it does is not bounded."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Label = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(OpenAIBody):
    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(OpenAIBody):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None
    task_budget: Label = None


class _Conversation(OpenAIRequest):
    """Holds the fields that are part of the prompt."""

    model: ModelName
    messages: AnthropicMessages
    system: Texts = Field(default_factory=list)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Label = None
    speed: Label = None
    user_profile_id: Label = None
    workspace_id: Label = None
    mcp_servers: Annotated[Any, AllowedValues((None, []))] = None

    def text_job(self, sampling: protocol.Sampling, **values: Any) -> protocol.TextJob:
        """Make the message to a worker. Raises InvalidRequest."""
        choice = self.tool_choice
        alone = choice is not None and choice.disable_parallel_tool_use
        return protocol.TextJob(
            id=new_task_id(),
            messages=chat_messages(self.system, self.messages),
            sampling=sampling,
            template_kwargs=self._switches().template_variables(),
            continue_final=self._continues(),
            **tool_fields(self.tools, chosen(choice), parallel=not alone),
            **values,
        )

    def _continues(self) -> bool:
        """Return whether the answer continues the last message. Raises InvalidRequest."""
        last = self.messages[-1]
        if last.role != "assistant":
            return False
        if any(block.type == "tool_use" for block in last.content):
            raise InvalidRequest(
                "The last message calls a tool; its result must follow.",
                param=f"messages[{len(self.messages) - 1}]",
            )
        return True

    def unknown_switches(self, known: Collection[str] | None) -> list[str]:
        """Return the fields that a template which knows these switches does not know.

        ``thinking`` is none of them: it says whether thoughts are shown, too.
        """
        unknown = self._switches().unknown_switches(known)
        return ["output_config.effort"] if "reasoning_effort" in unknown else []

    def _switches(self) -> Switches:
        thinking, config = self.thinking, self.output_config
        effort = config.effort if config is not None else None
        return Switches(
            enable_thinking=None if thinking is None else thinking.type != "disabled",
            reasoning_effort=None if effort is None else _EFFORTS.get(effort, effort),
        )


class MessagesRequest(SamplingFields, _Conversation):
    """Asks for the next message of a conversation."""

    max_tokens: MaxTokens
    stop_sequences: Stops = None
    stream: bool | None = None
    metadata: Label = None
    service_tier: Label = None
    inference_geo: Label = None
    diagnostics: Label = None
    container: Annotated[Any, AllowedValues((None,))] = None

    @property
    def shows_thinking(self) -> bool:
        """Return whether the answer holds what the model thought."""
        asked = self.thinking
        return asked is None or (asked.type != "disabled" and asked.display != "omitted")

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        sampling = self.sampling(
            context.model_settings.sampling,
            DEFAULTS,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            logprobs=None,
        )
        work = self.text_job(
            sampling,
            grammar=self._grammar(),
            clip_max_tokens=True,
            stream=bool(self.stream),
            prefix_scope=context.prefix_scope,
        )
        user = self.metadata.get("user_id") if isinstance(self.metadata, dict) else None
        return context.job(work, session=user)

    def _grammar(self) -> protocol.Grammar | None:
        if self.output_config is None or self.output_config.format is None:
            return None
        schema = self.output_config.format.json_schema
        return schema_grammar(schema, "output_config.format.schema", strict=True)


class CountTokensRequest(_Conversation):
    """Asks how many tokens a conversation has."""

    def to_job(self, context: JobContext) -> Job:
        """Make a job that ends before any token is made. Raises InvalidRequest."""
        sampling = protocol.Sampling(max_tokens=1)
        return context.job(self.text_job(sampling, count_only=True, stream=False))
