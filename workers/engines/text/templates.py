"""Renders chat templates, foreign code, in the library's sandbox with three more fences.

The sandbox stops escapes but neither loops nor growth. So: operators that can grow a value without
bound are intercepted (which also keeps the compiler from folding constants), the output is cut off
at a character budget, and rendering ends after a time limit.
"""

import ctypes
import operator
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jinja2
import jinja2.filters
from transformers.utils import chat_template_utils

from workers.engines.base import Refused
from workers.protocol import ChatMessage

RENDER_SECONDS = 2.0
_LONGEST_VALUE = 4_000_000  #: characters or items that one operator may produce
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*[\d*]")
_BRACE_WIDTH = re.compile(r"\{[^}]*:")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul,
    "**": operator.pow,
    "+": operator.add,
    "%": operator.mod,
}


class TemplateTooExpensive(jinja2.TemplateError):
    """The template asked for more time or memory than a prompt can need."""


class BrokenTemplate:
    """Stands for a template that does not compile: it refuses chats, completions work."""

    def __init__(self, error: jinja2.TemplateError) -> None:
        line = (error.message or type(error).__name__).splitlines()[0][:300]
        self._message = f"This model's chat template does not compile: {line}"

    def render(self, _messages: tuple[ChatMessage, ...], _max_characters: int) -> str:
        """Raise :class:`Refused` with what the compiler said."""
        raise Refused("INVALID_REQUEST", self._message, param="messages")


class ChatTemplate:
    """Renders one model's template. Raises jinja2.TemplateError if it does not compile."""

    def __init__(self, source: str, special_tokens: dict[str, Any]) -> None:
        self._special_tokens = {name: str(token) for name, token in special_tokens.items()}
        self._template = _environment().from_string(source)
        # The operator ~ is compiled to a call of this name, not to an interceptable operator.
        self._template.root_render_func.__globals__["str_join"] = _bounded_concat

    def render(self, messages: tuple[ChatMessage, ...], max_characters: int) -> str:
        """Return the prompt for these messages, up to where the model's answer begins.

        Raises :class:`Refused` with INVALID_REQUEST when the template refuses the messages, and
        with CONTEXT_LENGTH_EXCEEDED when more than ``max_characters`` come out.
        """
        plain = [{"role": m.role, "content": m.content} for m in messages]
        try:
            with _time_limit(RENDER_SECONDS):
                return self._collect(plain, max_characters)
        except jinja2.TemplateError as error:
            raise _refusal(error.message or type(error).__name__) from error
        except (TypeError, ValueError, KeyError, ArithmeticError, MemoryError) as error:
            # What a template does wrong inside an expression comes out as Python's own errors.
            raise _refusal(f"{type(error).__name__}: {error}") from error

    def _collect(self, messages: list[dict[str, str]], max_characters: int) -> str:
        pieces: list[str] = []
        length = 0
        rendered = self._template.generate(
            messages=messages, add_generation_prompt=True, **self._special_tokens
        )
        for piece in rendered:
            length += len(piece)
            if length > max_characters:
                raise Refused(
                    "CONTEXT_LENGTH_EXCEEDED",
                    f"The rendered messages are longer than {max_characters} characters, "
                    "which the model's context cannot hold.",
                    param="messages",
                )
            pieces.append(piece)
        return "".join(pieces)


def _refusal(reason: str) -> Refused:
    return Refused(
        "INVALID_REQUEST",
        f"The model's chat template refuses these messages: {reason[:500]}",
        param="messages",
    )


def _environment() -> Any:
    """Return the library's own sandbox, with its extensions and filters, and our fences.

    The library compiles without a way to pass an environment in, so it is taken from a template
    of its making; the empty template is nobody else's.
    """
    environment = chat_template_utils._compile_jinja_template("").environment
    environment.intercepted_binops = frozenset(_OPERATORS)
    environment.call_binop = _bounded_operator
    environment.call = _BoundedCall(type(environment).call, environment)
    environment.globals.pop("lipsum", None)
    for name in ("center", "format", "indent", "join", "replace"):
        environment.filters[name] = _bounded_filter(name, jinja2.filters.FILTERS[name])
    return environment


def _check_size(size: int) -> None:
    if size > _LONGEST_VALUE:
        raise TemplateTooExpensive("a value in the chat template grows too long")


def _bounded_operator(_context: Any, sign: str, left: Any, right: Any) -> Any:
    if sign == "**":
        raise TemplateTooExpensive("powers are not allowed in a chat template")
    if sign == "%" and isinstance(left, str):
        _check_format(left, _PERCENT_WIDTH)
    if sign == "*":
        _check_size(_product_size(left, right))
    if sign == "+":
        _check_size(_size(left) + _size(right))
    return _OPERATORS[sign](left, right)


def _check_format(text: str, width: re.Pattern[str]) -> None:
    if width.search(text):
        raise TemplateTooExpensive("widths in a format are not allowed in a chat template")


def _bounded_concat(values: Iterable[Any]) -> str:
    """Concatenate within bounds: the compiled template calls this for ``~``."""
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


class _BoundedCall:
    """Replaces ``call`` of the environment, through which all calls of a template go."""

    def __init__(self, call: Callable[..., Any], environment: Any) -> None:
        self._call = call
        self._environment = environment

    def __call__(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps str.format; beneath it is the method of a string like the others.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str):
            name = getattr(function, "__name__", "")
            _check_size(_result_size(name, owner, (*args, *kwargs.values())))
        return self._call(self._environment, context, function, *args, **kwargs)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_context = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[1:] if takes_context else args
        if name == "format":
            _check_format(str(value), _PERCENT_WIDTH)
        elif name == "join":  # the filter joins its value, the method its argument
            value = list(value)
            args = (args[0], value, *rest)
            _check_size(_result_size("join", str(rest[0]) if rest else "", (value,)))
        else:
            _check_size(_result_size(name, str(value), (*rest, *kwargs.values())))
        return function(*args, **kwargs)

    return checked


def _result_size(name: str, text: str, args: tuple[Any, ...]) -> int:
    """Return an upper bound of a method's result, for those that can grow ``text``."""
    match name, args:
        case (("center" | "ljust" | "rjust" | "zfill" | "expandtabs" | "indent"), (int(width), *_)):
            return max(width, 0) * (1 + text.count("\n") + text.count("\t")) + len(text)
        case "replace", (old, new, *_):
            return len(text) + text.count(str(old)) * len(str(new))
        case "join", (list() | tuple() as items, *_):
            return sum(len(str(item)) + len(text) for item in items)
        case (("format" | "format_map"), _):
            _check_format(text, _BRACE_WIDTH)
            return len(text) + sum(len(str(arg)) for arg in args) * text.count("{")
        case ("translate", _):
            raise TemplateTooExpensive("translate is not allowed in a chat template")
        case _:
            return 0


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 1


def _product_size(left: Any, right: Any) -> int:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            return len(sequence) * times
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    return 0


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TemplateTooExpensive` in this thread once the time is over.

    The lock makes sure that the exception cannot arrive after the block has ended.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    running = True

    def stop() -> None:
        with lock:
            if running:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(TemplateTooExpensive)
                )

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            running = False
        timer.cancel()
