"""Makes prompts of conversations, and knows how the model's answers to them are to be read."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import msgspec

from workers.engines.base import Refused
from workers.engines.text.history import template_tools
from workers.engines.text.parsing.recognition import ResponseFormat, response_format
from workers.engines.text.templates import BrokenTemplate, ChatTemplate
from workers.protocol import ChatMessage, TextJob, Tool

_HERMES = "hermes"  #: how calls are asked for where a template has no place for tools
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
        self,
        plain: ChatTemplate | BrokenTemplate | None,
        with_tools: ChatTemplate | BrokenTemplate | None,
        *,
        form: ResponseFormat | None,
        generic: ResponseFormat | None,
    ) -> None:
        """``with_tools``: the template for requests with tools, often the same one.

        ``form``: how the model's answers are read; ``generic``: how they are where calls were asked
        for in the prompt, None where nothing is to be read.
        """
        self.plain = plain
        self._with_tools = with_tools
        self._form = form
        self._generic = generic
        known = isinstance(with_tools, ChatTemplate) and "tools" in with_tools.variables
        self._native = known and form is not None and form.calls

    def render(self, job: TextJob, most: int) -> str:
        """Return the prompt of a job's messages. Raises Refused; ``most``: characters."""
        template = self._with_tools if job.tools else self.plain
        messages = job.messages or ()
        if template is None:
            raise Refused("INVALID_REQUEST", "This model has no chat template.", param="messages")
        if job.tools and self._generic is None:
            raise Refused(
                "UNSUPPORTED_PARAMETER",
                "Calls of this model are not read: its setting text.response_template is 'none'.",
                param="tools",
            )
        if job.tools and not self._native:
            return template.render(told(messages, job.tools), most, variables=job.template_kwargs)
        return template.render(messages, most, tools=job.tools, variables=job.template_kwargs)

    def reading(self, job: TextJob, prompt: str) -> Reading | None:
        """Return how the answer is to be read; None if its text is all there is."""
        form = self._form
        if job.tools:
            form = self._form if self._native else self._generic
        elif form is not None and not form.reasons:
            form = None
        if form is None:
            return None
        return Reading(form, form.begun(prompt), job.tools, job.parallel_tool_calls)


def conversation(tokenizer: Any, model_type: str, wanted: str | None) -> Conversation:
    """Make the conversation of a loaded model. ``wanted``: the setting text.response_template."""
    plain, source = _template(tokenizer, with_tools=False)
    with_tools, tool_source = _template(tokenizer, with_tools=True)
    if tool_source == source:
        with_tools = plain
    form = response_format(tokenizer, tool_source or source, model_type, wanted)
    generic = None if wanted == "none" else response_format(tokenizer, None, "", _HERMES)
    return Conversation(plain, with_tools, form=form, generic=generic)


def _template(
    tokenizer: Any, *, with_tools: bool
) -> tuple[ChatTemplate | BrokenTemplate | None, str | None]:
    """Return a template and its source: with tools the one called tool_use, if there is one."""
    try:
        source = tokenizer.get_chat_template(tools=[{}] if with_tools else None)
    except ValueError:  # that is how the library says that there is none
        return None, None
    try:
        return ChatTemplate(source, tokenizer.special_tokens_map), source
    except jinja2.TemplateError as error:
        return BrokenTemplate(error), source


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
