"""Compiles grammars, on a thread of its own, and keeps those that come again."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from workers.engines.base import Refused
from workers.engines.text.grammar.source import refusal, translate
from workers.protocol import Grammar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: What one grammar may take, in llguidance's units: compiling a second and some megabytes (a unit
#: of fuel holds 150 bytes, and its time grows with the square of the symbols), a step 10 ms.
LIMITS = LLParserLimits(
    initial_lexer_fuel=100_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_lexer_states=20_000,  # of up to two kilobytes each
    max_grammar_size=20_000,
    verbose_errors=False,
)
_MOST_KEPT = 64
#: Bytes of the compiling thread's stack, of which only what is used is taken. The library follows
#: rules and references that name one another by recursion, as many as a source has room for, and a
#: stack that ends ends the process.
_STACK = 256 << 20
_MOST_KEPT_CHARACTERS = 4 << 20  #: of the sources of the grammars that are kept


@dataclass(slots=True, frozen=True)
class Compiled:
    """Holds a grammar at its beginning; texts take copies of it."""

    grammar: Grammar
    matcher: LLMatcher


class GrammarCompiler:
    """Compiles grammars for one vocabulary, one at a time.

    A compile may take half a second, and the first one waits for the vocabulary: requests wait for
    theirs aside from the engine's steps and from the preparation of others.
    """

    def __init__(self, vocabulary: Callable[[], LLTokenizer]) -> None:
        """``vocabulary`` is called once, when the first grammar comes."""
        self._make_vocabulary = vocabulary
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        self._characters = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    def compile(self, grammar: Grammar) -> "Future[Compiled]":
        """Return the compiled grammar, now or later; one that is refused gives Refused."""
        with self._lock:
            known = self._kept.get(grammar)
            if known is not None:
                self._kept.move_to_end(grammar)
                return known
            new = self._submit(self._compile, grammar)
            self._kept[grammar] = new
            self._characters += len(grammar.source)
            self._forget_oldest()
        return new

    def warm_up(self) -> None:
        """Make the vocabulary now, while no request waits for the interpreter."""
        with self._lock:
            made = self._submit(self._known_vocabulary)
        made.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have a function called on the thread, whose first call starts it."""
        usual = threading.stack_size(_STACK)
        try:
            return self._thread.submit(function, *args, **kwargs)
        finally:
            threading.stack_size(usual)

    def _forget_oldest(self) -> None:
        while len(self._kept) > _MOST_KEPT or self._characters > _MOST_KEPT_CHARACTERS:
            grammar, _ = self._kept.popitem(last=False)
            self._characters -= len(grammar.source)

    def _known_vocabulary(self) -> LLTokenizer:
        if self._vocabulary is None:
            self._vocabulary = self._make_vocabulary()
        return self._vocabulary

    def _compile(self, grammar: Grammar) -> Compiled:
        """Compile a grammar, and its first mask, which takes longer than others. Raises Refused."""
        try:
            matcher = LLMatcher(
                self._known_vocabulary(), translate(grammar), log_level=0, limits=LIMITS
            )
            if not matcher.is_error():
                matcher.compute_bitmask()
        except Refused:
            raise
        except ValueError as error:  # such as half a character, or a number of too many digits
            raise refusal(grammar, "it holds what no JSON of a text can say") from error
        except BaseException as error:
            # The library's own faults are panics, which are BaseExceptions.
            log.exception("a grammar of the kind %s could not be compiled", grammar.kind)
            raise refusal(grammar, "the grammar library failed on it") from error
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        return Compiled(grammar, matcher)
