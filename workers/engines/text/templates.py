"""Renders chat templates, which are untrusted code, in a bounded sandbox within a time limit."""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes

from workers.engines.base import Refused
from workers.engines.text.control_tokens import GOES_ON, ControlTokens, with_marks
from workers.engines.text.history import (
    HistoryForm,
    characters,
    found_form,
    in_parts,
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


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """Tells how a conversation ends in a prompt; usually the header of the model's
    turn is written."""

    header: bool = True
    goes_on: bool = False  #: after the last message's content, whose turn is not closed


ANSWER = PromptEnd()


class BrokenTemplate:
    """Stands for a template that cannot be used: it refuses chats, completions work."""

    def __init__(self, reason: str) -> None:
        self._message = f"This model's chat template {reason}"

    @classmethod
    def of(cls, error: jinja2.TemplateError) -> "BrokenTemplate":
        """Return one that tells what the compiler said."""
        line = (error.message or type(error).__name__).splitlines()[0][:300]
        return cls(f"does not compile: {line}")

    def render(
        self,
        _messages: Sequence[ChatMessage],
        _max_characters: int,
        *,
        tools: Sequence[Tool] = (),  # noqa: ARG002  it takes what a template takes
        variables: Mapping[str, Any] | None = None,  # noqa: ARG002
        end: PromptEnd = ANSWER,  # noqa: ARG002
        parts: bool = False,  # noqa: ARG002
        control: ControlTokens | None = None,  # noqa: ARG002
    ) -> str:
        """Raise :class:`Refused` with the reason."""
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
            tree = self._environment.parse(source)
            names = tree.find_all(nodes.Name)
            self.variables = {each.name for each in names if each.ctx == "load"}
            self.literals = _literals(tree)
        except (RecursionError, SyntaxError, MemoryError) as error:
            # What is nested too deep for the library fails in Python's own compiler.
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error

    @cached_property
    def history_form(self) -> HistoryForm:
        """Return how the template takes calls in what was said before, found out by trying."""
        return found_form(
            self.source, lambda messages: self._rendered(messages, _PROBE, {}, ANSWER)
        )

    @cached_property
    def takes_texts(self) -> bool:
        """Return whether the content of a message may be a text; else it is a list of parts."""
        told = [{"role": "user", "content": "probe question"}]
        try:
            return "probe question" in self._rendered(told, _PROBE, {}, ANSWER)
        except Refused:
            return False

    def render(
        self,
        messages: Sequence[ChatMessage],
        max_characters: int,
        *,
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
        end: PromptEnd = ANSWER,
        parts: bool = False,
        control: ControlTokens | None = None,
    ) -> str:
        """Return the prompt for these messages, up to where the model's answer begins.

        ``variables``: further ones for the template. ``parts``: the template is of a model that
        reads pictures. ``control`` marks what clients have written like control tokens. Raises
        :class:`Refused` with INVALID_REQUEST when the template refuses the messages, and with
        CONTEXT_LENGTH_EXCEEDED when more than ``max_characters`` come out.
        """
        if characters(messages) > max_characters:
            raise _too_long(max_characters)
        more = any(each.tool_calls or each.tool_call_id or each.reasoning for each in messages)
        form = self.history_form if more else HistoryForm()
        given = dict(variables or {})
        if tools:
            given["tools"] = template_tools(tools)
        told = template_messages(messages, form)
        if parts:
            told = in_parts(told, messages, texts=self.takes_texts)
        if control is not None:
            told, given = control.mark_messages(told), control.mark(given)
        if not end.goes_on:
            return with_marks(self._rendered(told, max_characters, given, end))
        told[-1] = {**told[-1], "content": _going_on(told[-1]["content"])}
        return _open(with_marks(self._rendered(told, max_characters, given, end)))

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        max_characters: int,
        given: dict[str, Any],
        end: PromptEnd,
    ) -> str:
        try:
            with _time_limit(RENDER_SECONDS):
                return self._collect(messages, max_characters, given, end)
        except jinja2.TemplateError as error:
            raise _refusal(str(error.message or type(error).__name__)) from error
        except Refused:
            raise
        except Exception as error:
            # What a template does wrong inside an expression comes out as Python's own errors.
            raise _refusal(f"{type(error).__name__}: {error}") from error

    def _collect(
        self,
        messages: list[dict[str, Any]],
        max_characters: int,
        given: dict[str, Any],
        end: PromptEnd,
    ) -> str:
        self._environment.start()
        pieces: list[str] = []
        length = 0
        rendered = self._template.generate(
            {
                **given,
                **self._special_tokens,
                "messages": messages,
                "add_generation_prompt": end.header and not end.goes_on,
            }
        )
        for piece in rendered:
            length += len(piece)
            if length > max_characters:
                raise _too_long(max_characters)
            pieces.append(piece)
        return "".join(pieces)


def _literals(tree: nodes.Template) -> str:
    """Return all text that stands in a template, outside and inside of strings."""
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(texts))


def _going_on(content: Any) -> Any:
    """Return the content of the last message with a mark where it ends."""
    if not isinstance(content, list):
        return (content or "") + GOES_ON
    return [*content, {"type": "text", "text": GOES_ON}]


def _open(rendered: str) -> str:
    """Return a prompt up to where the last message goes on. Raises Refused."""
    text, found, rest = rendered.rpartition(GOES_ON.strip())
    if not found:
        raise _refusal("it leaves the last one out, so that none can go on")
    # A template that trims its messages is to trim this one too.
    return text if rest.startswith(GOES_ON[1:]) else text.rstrip()


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
