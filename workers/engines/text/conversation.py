"""Makes prompts of conversations, and knows how the model's answers to them are to be read."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from workers.engines.base import Refused
from workers.engines.text.chat_templates import ChatTemplates
from workers.engines.text.control_tokens import ControlTokens, without_marks
from workers.engines.text.end_tokens import turn_ends
from workers.engines.text.history import template_tools
from workers.engines.text.parsing.recognition import ResponseFormat, response_format
from workers.engines.text.templates import ChatTemplate, PromptEnd
from workers.protocol import ChatMessage, TextJob, Tool

_HERMES = "hermes"  #: how calls are asked for where a template has no place for tools
_NO_TEMPLATE = (
    "This model has no chat template. It completes a 'prompt': by /v1/completions, or without "
    "'messages' by /api/v1/inference/text-generation."
)
_TOLD = """You may call functions to help with the request. Their signatures:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as JSON, each call by itself in tags:
<tool_call>
{{"name": "name of the function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


class Reading(NamedTuple):
    """How an answer is to be read."""

    form: ResponseFormat
    begun: str  #: what the prompt has written of the answer
    tools: tuple[Tool, ...]
    parallel: bool


class Conversation:
    """Renders messages and tools by the templates of one model."""

    def __init__(
        self, templates: ChatTemplates | None, tokenizer: Any, model_type: str, wanted: str | None
    ) -> None:
        """``wanted``: the setting text.response_template."""
        self._templates = templates
        self._control = ControlTokens(tokenizer, templates.literals if templates else "")
        with_tools = templates.choose(tools=True) if templates else None
        known = with_tools if isinstance(with_tools, ChatTemplate) else None
        source = known.source if known else None
        #: how the model's answers are read
        self._form = response_format(tokenizer, source, model_type, wanted)
        #: how they are where calls were asked for in the prompt; None where nothing is to be read
        self._generic = None if wanted == "none" else response_format(tokenizer, None, "", _HERMES)
        form = self._form
        native = known is not None and "tools" in known.variables
        self._native = native and form is not None and form.calls
        #: tokens by which the template ends what an assistant says
        self.turn_ends = turn_ends(templates, self._control) if templates else frozenset()

    def render(self, job: TextJob, most: int) -> str:
        """Return the prompt of a job's messages. Raises Refused; ``most``: characters."""
        if self._templates is None:
            raise Refused("INVALID_REQUEST", _NO_TEMPLATE, param="messages")
        if job.tools and self._generic is None:
            raise Refused(
                "UNSUPPORTED_PARAMETER",
                "Calls of this model are not read: its setting text.response_template is 'none'.",
                param="tools",
            )
        messages, tools = job.messages or (), job.tools
        if tools and not self._native:
            messages, tools = tuple(told(messages, tools)), ()
        return self._templates.choose(tools=bool(job.tools)).render(
            messages,
            most,
            tools=tools,
            variables=job.template_kwargs,
            end=PromptEnd(header=job.generation_prompt, goes_on=job.continue_final),
            control=self._control,
        )

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt with marks. Raises Refused; one thread at a time may call."""
        return self._control.encode(prompt)

    def reading(self, job: TextJob, prompt: str) -> Reading | None:
        """Return how the answer is to be read; None if its text is all there is."""
        form = self._form
        if job.tools:
            form = self._form if self._native else self._generic
        elif form is not None and not form.reasons:
            form = None
        if form is None:
            return None
        return Reading(form, without_marks(form.begun(prompt)), job.tools, job.parallel_tool_calls)


def told(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """Return messages that tell of the tools, for a template that has no place for them.

    The first message tells, so that templates without a system's turn take it.
    """
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in template_tools(tools))
    text = _TOLD.format(tools=signatures)
    first, *others = messages
    if first.role == "system":
        return [msgspec.structs.replace(first, content=f"{first.content}\n\n{text}"), *others]
    if first.role == "user":
        return [msgspec.structs.replace(first, content=f"{text}\n\n{first.content}"), *others]
    return [ChatMessage("system", text), *messages]
