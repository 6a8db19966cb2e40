"""The native API takes this request for text."""

from typing import Annotated

from pydantic import Field

from bitinglip.errors import InvalidRequest
from bitinglip.scheduling.job import Job, new_task_id
from bitinglip.scheduling.queue.priority import RequestPriority
from bitinglip.wire.body import ModelName, Timeout
from bitinglip.wire.job_context import JobContext
from bitinglip.wire.plain import PlainReader
from bitinglip.wire.text.extras import extra_fields
from bitinglip.wire.text.fields import (
    PLAIN_MESSAGE,
    ApiDefaults,
    Logprobs,
    Messages,
    SamplingFields,
    Stops,
)
from bitinglip.wire.text.forms import NativeForms
from bitinglip.wire.text.prompt_end import PromptEndFields
from bitinglip.wire.text.switches import Switches
from bitinglip.wire.text.tools import MAX_TOOLS, ToolChoice, ToolEntry
from workers import protocol

DEFAULTS = ApiDefaults(max_tokens=512, temperature=0.7, top_p=0.9)


class TextGenerationRequest(NativeForms, Switches, PromptEndFields, SamplingFields):
    """Asks for text from a ``prompt``, or from ``messages`` through the model's chat template."""

    model: ModelName
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None  #: such as BOS, around a prompt; null is true
    stop_sequences: Stops = None
    logprobs: Logprobs | None = None
    tools: Annotated[list[ToolEntry] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    timeout: Timeout | None = None
    stream: bool = False
    priority: RequestPriority = "normal"
    asynchronous: Annotated[bool, Field(alias="async")] = False

    def to_job(self, context: JobContext) -> Job:
        """Make the job that this request asks for. Raises InvalidRequest."""
        self._check_one_input()
        messages = tuple(m.to_job() for m in self.messages) if self.messages else None
        work = protocol.TextJob(
            id=new_task_id(),
            prompt=self.prompt,
            messages=messages,
            sampling=self.sampling(
                context.model_settings.sampling,
                DEFAULTS,
                max_tokens=self.max_tokens,
                stop=self.stop_sequences,
                logprobs=self.logprobs,
            ),
            n=self.n or 1,
            clip_max_tokens=self.max_tokens is None,
            stream=self.stream,
            prefix_scope=context.prefix_scope,
            special_tokens=self.add_special_tokens is not False,
            **extra_fields(self, messages),
        )
        return context.job(work, timeout=self.timeout)

    def _check_one_input(self) -> None:
        if self.messages is None and self.tools:
            raise InvalidRequest("'tools' needs 'messages'.", param="tools")
        if self.messages is not None and self.add_special_tokens is not None:
            raise InvalidRequest(
                "'add_special_tokens' is for a 'prompt'; the chat template of the model writes "
                "those of 'messages'.",
                param="add_special_tokens",
            )
        if self.prompt is not None and self.messages is not None:
            raise InvalidRequest("Send either 'prompt' or 'messages', not both.", param="messages")
        if self.prompt is None and self.messages is None:
            raise InvalidRequest("'prompt' is missing.", param="prompt")


PlainReader(TextGenerationRequest, nested=(PLAIN_MESSAGE,)).used()
