"""Makes the environment of chat templates: the library's sandbox with bounds on its values.

Everything that a template can make goes through one of the hooks here: operators, calls, filters,
containers written out, and the joining of output.
"""

from collections.abc import Iterable
from types import FunctionType
from typing import Any, NoReturn, TypeVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as LIBRARY_TESTS
from jinja2.utils import Joiner
from transformers.utils import chat_template_utils

from workers.engines.text.template_bounds import (
    Meter,
    Meters,
    TemplateTooExpensive,
    check_number,
    check_size,
)
from workers.engines.text.template_filters import (
    METHODS,
    TESTS,
    bounded_arguments,
    bounded_filters,
    check_percent,
)

_GLOBALS = ("dict", "joiner", "namespace", "raise_exception", "range", "strftime_now")
_LONGEST_TIME_FORMAT = 256
_LOOP_METHODS = frozenset({"changed", "cycle"})
#: What the compiler adds to the arguments of a call: names of the template's own.
_SCOPES = frozenset({"_loop_vars", "_block_vars"})

T = TypeVar("T")


class _BoundedCode(CodeGenerator):
    """Compiles containers and concatenations to calls of the environment, and folds nothing:
    what is computed while compiling has no time limit."""

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._bounded(node, node.items, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        self._bounded(node, node.items if node.ctx == "load" else [], frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        items = [part for pair in node.items for part in (pair.key, pair.value)]
        self._bounded(node, items, frame)

    def _bounded(self, node: nodes.Expr, items: list[nodes.Expr], frame: Frame) -> None:
        plain = all(isinstance(item, nodes.Const) for item in items)
        self.write("" if plain else "environment.bounded(")
        getattr(super(), f"visit_{type(node).__name__}")(node, frame)
        self.write("" if plain else ")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_ScopedEvalContextModifier(  # noqa: N802
        self, node: nodes.ScopedEvalContextModifier, _frame: Frame
    ) -> NoReturn:
        # The tag makes every text longer, and its argument is computed while compiling.
        self.fail("autoescape is not allowed in a chat template", node.lineno)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Bounds the sandbox; ``meters`` holds the meter of the rendering in each thread."""

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, library: ImmutableSandboxedEnvironment) -> None:
        """Takes extensions, filters and functions over from the library's environment."""
        super().__init__(
            trim_blocks=library.trim_blocks,
            lstrip_blocks=library.lstrip_blocks,
            extensions=[type(extension) for extension in library.extensions.values()],
            optimized=False,
        )
        self.meters = Meters()
        self.filters = bounded_filters(library.filters, self.meters)
        self.tests = {name: test for name, test in LIBRARY_TESTS.items() if name in TESTS}
        self.globals = {name: library.globals[name] for name in _GLOBALS}
        self.globals["namespace"] = _quiet(library.globals["namespace"])
        self.globals["strftime_now"] = _short_time(library.globals["strftime_now"])
        self._functions = {id(function) for function in self.globals.values()}

    def call_binop(self, _context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = self.meters.meter
        if operator == "**":
            raise TemplateTooExpensive("powers are not allowed in a chat template")
        if operator == "%" and isinstance(left, str):
            check_percent(meter, left, right)
        for one, other in ((left, right), (right, left)):
            if isinstance(one, int):
                check_number(one)
                if operator == "*" and not isinstance(other, int | float):
                    check_size(
                        one * (len(other) if isinstance(other, str) else meter.weight(other))
                    )
        return meter.check(self.binop_table[operator](left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template may call. Raises SecurityError for the rest."""
        meter = self.meters.meter
        # The sandbox wraps str.format; beneath it is the method of a string like the others.
        method = function
        if isinstance(function, FunctionType):
            method = getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if isinstance(function, Undefined):
            pass  # raises the error that says what is undefined
        elif owner is not None and not isinstance(owner, type):
            name = method.__name__
            if not _may_call(owner, name):
                kind = type(owner).__name__
                raise SecurityError(f"'{name}' of {kind} is not allowed in a chat template")
            if isinstance(owner, str):
                args = bounded_arguments(meter, name, owner, args, kwargs)
        elif id(function) in self._functions or isinstance(
            function, Macro | LoopContext | BlockReference | Joiner
        ):
            # A macro may keep its arguments, as a tuple and a dictionary.
            given = {name: kwargs[name] for name in kwargs.keys() - _SCOPES}
            meter.weight((args, given))
        else:
            raise SecurityError("the chat template calls what it may not")
        return meter.check(super().call(context, function, *args, **kwargs))

    def bounded(self, value: T) -> T:
        """Check a container that the template has written out."""
        return self.meters.meter.check(value)

    def concatenated(self, values: Iterable[Any]) -> str:
        """Return what the operator ~ gives."""
        return self.concat(map(str, values))

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the output of a macro or a block."""
        texts = list(pieces)
        check_size(sum(map(len, texts)))
        return self.meters.meter.check("".join(texts))

    def start(self) -> None:
        """Begin a rendering in this thread: it has made nothing yet."""
        self.meters.meter = Meter()


def library_environment() -> ImmutableSandboxedEnvironment:
    """Return the environment in which the library renders chat templates."""
    # The library compiles without a way to pass an environment in, so it is taken from a template
    # of its making.
    environment: ImmutableSandboxedEnvironment = chat_template_utils._compile_jinja_template(
        ""
    ).environment
    return environment


def _may_call(owner: Any, name: str) -> bool:
    if isinstance(owner, LoopContext):
        return name in _LOOP_METHODS
    if isinstance(owner, Extension):
        return True  # compiled in by the extension's own tag
    return any(isinstance(owner, kind) and name in METHODS[kind] for kind in METHODS)


def _quiet(namespace: Any) -> Any:
    """Return the library's namespace, which does not print what it holds: that may be itself."""

    class Namespace(namespace):  # type: ignore[misc]  # a class that is found at run time
        def __repr__(self) -> str:
            return "<Namespace>"

    return Namespace


def _short_time(strftime_now: Any) -> Any:
    def short(format: str) -> str:
        if len(format) > _LONGEST_TIME_FORMAT:
            raise TemplateTooExpensive("a time in the chat template grows too long")
        text: str = strftime_now(format)
        return text

    return short
