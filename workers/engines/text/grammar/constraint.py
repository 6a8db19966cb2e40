"""Holds one text to its grammar: which tokens may follow, and whether it is complete."""

import queue
import threading
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from workers.engines.text.grammar.compiler import Compiled

#: A bit for each token, 32 to a word, set where the token may follow.
Words = npt.NDArray[np.int32]
_BITS = 32


class MaskThread:
    """Looks for the tokens that may follow, beside the model's forward pass.

    llguidance lets go of the interpreter's lock while it looks.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], None]) -> None:
        """Run a function that raises nothing, after those that were given before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="masks", daemon=True)
            self._thread.start()
        self._calls.put(function)

    def close(self) -> None:
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            function()


class Ends:
    """Knows the tokens that end a text, as bits of a mask."""

    def __init__(self, tokens: Iterable[int], vocab_size: int) -> None:
        """``vocab_size``: that of the vocabulary which llguidance knows."""
        words = -(-vocab_size // _BITS)
        bits = np.zeros(words * _BITS, dtype=np.uint8)
        bits[list(tokens)] = 1
        self.words = np.packbits(bits, bitorder="little").view(np.int32)
        self.others = ~self.words


class Constraint:
    """Holds one running text to its grammar.

    What it says is right while it is ``settled``; the engine's thread tells it of each token that
    was chosen, once, and it looks what may follow on the mask thread.
    """

    def __init__(
        self, compiled: Compiled, ends: Ends, thread: MaskThread, *, may_end: bool = True
    ) -> None:
        """``may_end``: the model may end the text wherever the grammar lets it."""
        self.grammar = compiled.grammar
        self.words = np.zeros_like(ends.words)  #: the tokens that may follow
        self.complete = False  #: nothing may follow
        self.error: str | None = None  #: why it cannot go on
        self._matcher = compiled.matcher.deep_copy()
        self._ends = ends
        self._may_end = may_end
        self._thread = thread
        self._settled = threading.Event()
        thread.call(partial(self._catch, self._look))

    @property
    def accepting(self) -> bool:
        """True if the text may end here; only right while it is settled."""
        return self._matcher.is_accepting()

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it is settled; return False if it is not by then."""
        return self._settled.wait(seconds)

    def advance(self, token: int) -> None:
        """Take the token that was chosen, and look what may follow it."""
        self._settled.clear()
        self._thread.call(partial(self._catch, partial(self._take, token)))

    def _catch(self, function: Callable[[], None]) -> None:
        try:
            function()
            if self._matcher.is_error():
                self.error = " ".join(self._matcher.get_error().split())
        except BaseException as error:  # noqa: BLE001  the library's faults are panics
            self.error = f"the grammar library failed ({type(error).__name__})"
        finally:
            self._settled.set()

    def _take(self, token: int) -> None:
        if self._matcher.consume_token(token):
            self._look()

    def _look(self) -> None:
        if self._matcher.is_stopped():
            self.complete = True
            return
        self._matcher.unsafe_compute_mask_ptr(self.words.ctypes.data, self.words.nbytes)
        others = self.words & self._ends.others
        if not others.any():
            self.complete = True
        elif not self._may_end:
            self.words = others
