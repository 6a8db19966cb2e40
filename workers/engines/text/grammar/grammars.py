"""Compiles grammars, masks rows by them, and checks finished texts."""

from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from workers.engines.base import Refused
from workers.engines.text.grammar.checks import Checks
from workers.engines.text.grammar.compiler import Compiled, GrammarCompiler
from workers.engines.text.grammar.constraint import Constraint, Ends, MaskThread
from workers.engines.text.grammar.rows import ConstrainedRows
from workers.engines.text.grammar.vocabulary import make_vocabulary


class Grammars:
    """Owns the grammars of one loaded model; nothing is made before the first one comes."""

    def __init__(self, tokenizer: Any, eos_ids: Collection[int], vocab_size: int) -> None:
        """``vocab_size``: how many tokens the model chooses from."""
        size = max(vocab_size, len(tokenizer))
        ends = [token for token in eos_ids if token < size]
        if not ends:  # the library needs one: it is given one that the model cannot choose
            ends, size = [size], size + 1
        self.compiler = GrammarCompiler(lambda: make_vocabulary(tokenizer, ends, size))
        self.rows = ConstrainedRows()
        self.checks = Checks()
        self._masks = MaskThread()
        self._ends = Ends(ends, size)
        self._awaited: dict[str, Future[Compiled]] = {}

    def wait(self, job_id: str, compiled: "Future[Compiled]") -> None:
        """Note that a job begins when its grammar has been compiled."""
        self._awaited[job_id] = compiled

    def forget(self, job_id: str) -> None:
        """Wait no longer for the grammar of a job, if it waits."""
        self._awaited.pop(job_id, None)

    @property
    def awaited(self) -> int:
        return len(self._awaited)

    @property
    def busy(self) -> bool:
        """True if something waits for a grammar, is held to one, or is being checked."""
        return bool(self._awaited or len(self.rows) or len(self.checks))

    def take(self) -> list[tuple[str, Compiled | Refused]]:
        """Return the jobs whose grammars have been compiled, or refused."""
        done = [(job_id, each) for job_id, each in self._awaited.items() if each.done()]
        taken: list[tuple[str, Compiled | Refused]] = []
        for job_id, each in done:
            del self._awaited[job_id]
            try:
                taken.append((job_id, each.result()))
            except Refused as refused:
                taken.append((job_id, refused))
        return taken

    def constraint(self, compiled: Compiled, *, may_end: bool) -> Constraint:
        """Return what holds one text to a grammar; see Constraint."""
        return Constraint(compiled, self._ends, self._masks, may_end=may_end)

    def close(self) -> None:
        self.compiler.close()
        self._masks.close()
        self.checks.close()
