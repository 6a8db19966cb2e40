"""Describes a model's tokens to llguidance, once for each loaded model."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from workers.engines.text.detokenizer import ByteTable, byte_table
from workers.engines.text.python_tokenizers import PieceTable, is_python


class _Bytes:
    """Gives llguidance the bytes of each token, and how the model's tokenizer splits a text."""

    bos_token_id: int | None = None

    def __init__(self, tokenizer: Any, table: Mapping[int, bytes], size: int, end: int) -> None:
        self.eos_token_id = end
        self.special_token_ids = sorted(added_tokens(tokenizer).values())
        self.tokens = [table[token] for token in range(size)]
        self._backend = tokenizer.backend_tokenizer

    def __call__(self, text: str) -> list[int]:
        """Tokenise what a grammar leaves no choice about; any thread may, this changes nothing."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def make_vocabulary(tokenizer: Any, eos_ids: Collection[int], size: int) -> LLTokenizer:
    """Return what llguidance must know of a tokenizer, of its first ``size`` tokens.

    ``eos_ids`` may name one token more, for a model that has none to end a text with. The
    interpreter's lock is held, twice for 0.3 s where there are 150,000 tokens; where tokens are
    not bytes the library reads the tokenizer's own description, once and three times as long.
    """
    ends = sorted(eos_ids)
    table: ByteTable | PieceTable | None = (
        PieceTable(tokenizer) if is_python(tokenizer) else byte_table(tokenizer)
    )
    if table is None:
        backend = copy.copy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return LLTokenizer(backend.to_str(), n_vocab=size, eos_token=ends)
    known = TokenizerWrapper(_Bytes(tokenizer, table, size, ends[0]))
    # In two halves, between which other threads get the lock.
    plain = LLTokenizer(known, n_vocab=size, eos_token=ends, slices=[])
    return plain.with_slices(LLTokenizer.general_slices())


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the tokens that were added to a vocabulary, by their texts.

    A grammar takes such a token only where it names it, never as a piece of text.
    """
    return {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
