"""Chat templates: code from a stranger, rendered in a bounded sandbox within a time limit."""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes

from workers.engines.base import Refused
from workers.engines.text.history import (
    HistoryForm,
    characters,
    found_form,
    template_messages,
    template_tools,
)
from workers.engines.text.template_bounds import TemplateTooSlow
from workers.engines.text.template_sandbox import BoundedEnvironment, library_environment
from workers.protocol import ChatMessage, Tool

RENDER_SECONDS = 2.0
_AGAIN_SECONDS = 0.25
_LONGEST_SOURCE = 1_000_000
_PROBE = 100_000  #: characters of a conversation that tries a template


class BrokenTemplate:
    """Stands for a template that does not compile: it refuses chats, completions work."""

    def __init__(self, error: jinja2.TemplateError) -> None:
        line = (error.message or type(error).__name__).splitlines()[0][:300]
        self._message = f"This model's chat template does not compile: {line}"

    def render(
        self,
        _messages: Sequence[ChatMessage],
        _max_characters: int,
        *,
        tools: Sequence[Tool] = (),  # noqa: ARG002  it takes what a template takes
        variables: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> str:
        """Raise :class:`Refused` with what the compiler said."""
        raise Refused("INVALID_REQUEST", self._message, param="messages")


class ChatTemplate:
    """Renders one model's template. Raises jinja2.TemplateError if it does not compile."""

    def __init__(self, source: str, special_tokens: dict[str, Any]) -> None:
        self._special_tokens = {name: str(token) for name, token in special_tokens.items()}
        if len(source) > _LONGEST_SOURCE:
            raise jinja2.TemplateError(f"it is longer than {_LONGEST_SOURCE} characters")
        self.source = source
        self._environment = BoundedEnvironment(library_environment())
        try:
            self._template = self._environment.from_string(source)
            #: The names that the template reads. ``jinja2.meta`` would fold constants on the way,
            #: which takes for ever in a hostile template.
            names = self._environment.parse(source).find_all(nodes.Name)
            self.variables = {each.name for each in names if each.ctx == "load"}
        except (RecursionError, SyntaxError, MemoryError) as error:
            # What is nested too deep for the library fails in Python's own compiler.
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error

    @cached_property
    def history_form(self) -> HistoryForm:
        """Return how the template takes calls in what was said before, found out by trying."""
        return found_form(self.source, lambda messages: self._rendered(messages, _PROBE, {}))

    def render(
        self,
        messages: Sequence[ChatMessage],
        max_characters: int,
        *,
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt for these messages, up to where the model's answer begins.

        ``variables``: further ones for the template. Raises :class:`Refused` with INVALID_REQUEST
        when the template refuses the messages, and with CONTEXT_LENGTH_EXCEEDED when more than
        ``max_characters`` come out.
        """
        if characters(messages) > max_characters:
            raise _too_long(max_characters)
        more = any(each.tool_calls or each.tool_call_id or each.reasoning for each in messages)
        form = self.history_form if more else HistoryForm()
        given = dict(variables or {})
        if tools:
            given["tools"] = template_tools(tools)
        return self._rendered(template_messages(messages, form), max_characters, given)

    def _rendered(
        self, messages: list[dict[str, Any]], max_characters: int, given: dict[str, Any]
    ) -> str:
        try:
            with _time_limit(RENDER_SECONDS):
                return self._collect(messages, max_characters, given)
        except jinja2.TemplateError as error:
            raise _refusal(str(error.message or type(error).__name__)) from error
        except Refused:
            raise
        except Exception as error:
            # What a template does wrong inside an expression comes out as Python's own errors.
            raise _refusal(f"{type(error).__name__}: {error}") from error

    def _collect(
        self, messages: list[dict[str, Any]], max_characters: int, given: dict[str, Any]
    ) -> str:
        self._environment.start()
        pieces: list[str] = []
        length = 0
        rendered = self._template.generate(
            {
                **given,
                **self._special_tokens,
                "messages": messages,
                "add_generation_prompt": True,
            }
        )
        for piece in rendered:
            length += len(piece)
            if length > max_characters:
                raise _too_long(max_characters)
            pieces.append(piece)
        return "".join(pieces)


def _too_long(max_characters: int) -> Refused:
    return Refused(
        "CONTEXT_LENGTH_EXCEEDED",
        f"The prompt is too long: its messages make more than {max_characters} characters, and "
        "this model's maximum context length cannot hold them.",
        param="messages",
    )


def _refusal(reason: str) -> Refused:
    return Refused(
        "INVALID_REQUEST",
        f"The model's chat template refuses these messages: {reason[:500]}",
        param="messages",
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TemplateTooSlow` in this thread once the time is over, and again until
    the block ends: the library drops some exceptions."""
    thread = ctypes.c_ulong(threading.get_ident())
    ended = threading.Event()

    def watch() -> None:
        wait = seconds
        while not ended.wait(wait):
            wait = _AGAIN_SECONDS
            _raise_in(thread, TemplateTooSlow)

    watcher = threading.Thread(target=watch, daemon=True, name="template-time-limit")
    watcher.start()
    try:
        yield
    finally:
        while watcher.is_alive():
            try:
                ended.set()
                watcher.join()
            except TemplateTooSlow:
                continue  # it came while the block was ending
        _raise_in(thread, None)  # one that has not arrived yet must not arrive later


def _raise_in(thread: ctypes.c_ulong, error: type[Exception] | None) -> None:
    """Have an exception raised in a thread at its next step; None takes it back."""
    pending = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, pending)
