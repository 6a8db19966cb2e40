"""Tells the traits of embeddings and of reranking."""

from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import Any

from bitinglip.access.usage.amounts import Amounts
from bitinglip.work.sizes import CHARACTERS_PER_TOKEN, MESSAGE_TOKENS, utf8_bytes
from bitinglip.work.traits import Most, Traits, replace
from workers import protocol


class EmbeddingTraits(Traits[protocol.EmbeddingJob]):
    """Counts tokens; a query is read with each of the texts."""

    __slots__ = ()
    output = (protocol.EmbeddingDone,)
    bytes_per_cost = 0
    guarded = None
    makes = None

    @property
    def operation(self) -> str:
        return "embeddings" if self.work.query is None else "rerank"

    def cost(self, _file_bytes: int) -> float:
        query = len(self.work.query or "")
        return sum(query + len(text) for text in self.work.texts) / CHARACTERS_PER_TOKEN

    def cost_done(self, final: protocol.Success | protocol.Cancelled) -> float | None:
        return float(final.prompt_tokens) if isinstance(final, protocol.EmbeddingDone) else None

    def affinity(self) -> str:
        """Return the job's id: different texts share nothing."""
        return self.work.id

    def input_bytes(self) -> int:
        return sum(getsizeof(text) for text in (*self.work.texts, self.work.query))

    def without_input(self) -> protocol.Job:
        return replace(self.work, texts=(), query=self.work.query and "")

    def most_used(self, _file_bytes: int, context: int | None, prompt_bytes: int = 0) -> Most:
        more = MESSAGE_TOKENS + prompt_bytes + utf8_bytes(self.work.query or "")
        each = [utf8_bytes(text) + more for text in self.work.texts]
        return Most(sum(each if context is None else (min(size, context) for size in each)))

    def used(self, events: Sequence[Any], last: protocol.Final | None) -> Amounts:
        prompt, completion = self.tokens(events, last)
        return Amounts(prompt_tokens=prompt, completion_tokens=completion)

    def tokens(self, events: Sequence[Any], last: protocol.Final | None) -> tuple[int, int]:
        if isinstance(last, protocol.EmbeddingDone):
            return last.prompt_tokens, 0
        return super().tokens(events, last)

    def texts(self) -> dict[str, str]:
        if self.work.query is None:
            return {f"input[{number}]": text for number, text in enumerate(self.work.texts)}
        documents = {f"documents[{number}]": text for number, text in enumerate(self.work.texts)}
        return {"query": self.work.query, **documents}

    def with_texts(self, texts: Mapping[str, str]) -> protocol.Job:
        whole = {**self.texts(), **texts}
        query = whole.pop("query", None)
        return replace(self.work, query=query, texts=tuple(whole.values()))

    def repeatable(self, seeded: bool) -> bool:  # noqa: ARG002  nothing is sampled
        return True

    def canonical(self, uploads: Mapping[str, str]) -> protocol.Job:  # noqa: ARG002  it has none
        return replace(self.work, id="")
