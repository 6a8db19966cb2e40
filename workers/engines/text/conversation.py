"""Makes prompts of conversations, and chooses how the answers to them are parsed."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from workers.engines.base import Refused
from workers.engines.text.chat_templates import ChatTemplates
from workers.engines.text.control_tokens import ControlTokens, without_marks
from workers.engines.text.end_tokens import turn_ends
from workers.engines.text.grammar.vocabulary import added_tokens
from workers.engines.text.history import template_tools
from workers.engines.text.parsing.call_grammar import (
    Unwritable,
    after_reasoning,
    call_grammar,
)
from workers.engines.text.parsing.recognition import (
    ResponseFormat,
    prompted_format,
    response_format,
)
from workers.engines.text.pictures import PictureReader, Read
from workers.engines.text.templates import ChatTemplate, PromptEnd
from workers.protocol import ChatMessage, Grammar, TextJob, Tool

_NO_TEMPLATE = (
    "This model has no chat template. It completes a 'prompt': by /v1/completions, or without "
    "'messages' by /api/v1/inference/text-generation."
)
_TOOLS_PROMPT = """You may call functions to help with the request. Their signatures:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments as JSON, each call by itself in tags:
<tool_call>
{{"name": "name of the function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


class Reading(NamedTuple):
    """Says how an answer is parsed."""

    form: ResponseFormat
    begun: str  #: what the prompt has written of the answer
    tools: tuple[Tool, ...]
    parallel: bool

    @property
    def reasons(self) -> bool:
        """Return whether the prompt has begun the model's reasoning."""
        return self.form.reasons_after(self.begun)


class Conversation:
    """Renders messages and tools by the templates of one model."""

    def __init__(
        self,
        templates: ChatTemplates | None,
        tokenizer: Any,
        model_type: str,
        wanted: str | None,
        pictures: PictureReader | None = None,
    ) -> None:
        """``wanted``: the setting text.response_template; ``pictures`` reads them, if the model
        does."""
        self._templates = templates
        self._pictures = pictures
        self._added = added_tokens(tokenizer)
        self._control = ControlTokens(tokenizer, templates.literals if templates else "")
        with_tools = templates.choose(tools=True) if templates else None
        known = with_tools if isinstance(with_tools, ChatTemplate) else None
        source = known.source if known else None
        #: how the model's answers are read
        self._form = response_format(tokenizer, source, model_type, wanted)
        #: how they are where calls were asked for in the prompt; None where nothing is to be read
        self._generic = None if wanted == "none" else prompted_format(tokenizer, source)
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
                "This model's tool calls are not parsed: text.response_template is 'none' for it.",
                param="tools",
            )
        messages, tools = job.messages or (), job.tools
        if tools and not self._native:
            messages, tools = tuple(with_tools_prompt(messages, tools)), ()
        return self._templates.choose(tools=bool(job.tools)).render(
            messages,
            most,
            tools=tools,
            variables=job.template_kwargs,
            end=PromptEnd(header=job.generation_prompt, goes_on=job.continue_final),
            parts=self._pictures is not None,
            control=self._control,
        )

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt with marks. Raises Refused; one thread at a time may call."""
        return self._control.encode(prompt)

    def encode_with_pictures(self, prompt: str, messages: Sequence[ChatMessage]) -> Read:
        """Return the ids of a prompt with its pictures, and what the model reads of these.

        Raises Refused; one thread at a time may call.
        """
        if self._pictures is None:
            raise Refused("INVALID_REQUEST", "This model reads no pictures.", param="messages")
        return self._pictures.read(prompt, messages, self.encode)

    def reading(self, job: TextJob, prompt: str) -> Reading | None:
        """Return how the answer is to be read; None if its text is all there is."""
        form = self._form
        if job.tools:
            form = self._form if self._native else self._generic
        elif form is not None and not form.reasons:
            form = None
        if form is None:
            return None
        begun = without_marks(form.begun(prompt))
        return Reading(form, begun, job.tools, job.parallel_tool_calls)

    def constrained(
        self, job: TextJob, reading: Reading | None
    ) -> tuple[Grammar | None, Reading | None]:
        """Return the grammar of the answer, and how the answer is parsed then. Raises Refused.

        The form that the request asks for begins after the reasoning.
        """
        if reading is None:
            return job.grammar, None
        if job.tools and job.tool_choice != "auto":
            return self._calls(job, reading), reading
        family = reading.form.family
        if job.grammar is None or family is None or not reading.form.reasons:
            return job.grammar, reading
        return after_reasoning(job.grammar, family, self._added, begun=reading.reasons), reading

    def _calls(self, job: TextJob, reading: Reading) -> Grammar:
        named = [tool for tool in job.tools if tool.name == job.tool_choice]
        one = bool(named) or not job.parallel_tool_calls
        reasoning = reading.reasons if reading.form.reasons else None
        try:
            if reading.form.family is None:
                raise Unwritable("its files define a format of their own")
            return call_grammar(
                reading.form.family, named or job.tools, self._added, one=one, reasoning=reasoning
            )
        except Unwritable as error:
            raise Refused(
                "UNSUPPORTED_PARAMETER",
                f"This model cannot be made to call a tool: {error}.",
                param="tool_choice",
            ) from error
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise Refused(
                "INVALID_REQUEST",
                "The parameters of a tool are no JSON schema that a call can be held to.",
                param="tools",
            ) from error


def with_tools_prompt(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """Describe the tools in the first message, for a template that has no place for them.

    Only a conversation that begins with neither a system nor a user message gets a system message
    of its own, since some templates refuse one.
    """
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in template_tools(tools))
    text = _TOOLS_PROMPT.format(tools=signatures)
    first, *others = messages
    if first.role == "system":
        return [msgspec.structs.replace(first, content=f"{first.content}\n\n{text}"), *others]
    if first.role == "user":
        return [msgspec.structs.replace(first, content=f"{text}\n\n{first.content}"), *others]
    return [ChatMessage("system", text), *messages]
