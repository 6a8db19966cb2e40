"""Turns token ids to text, one id at a time, never half a character."""

import codecs
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

_REPLACEMENT = "�"
#: A run of ids that ends in no whole character this long is not the beginning of one.
_LONGEST_RUN = 16


class Detokenizer(Protocol):
    """Turns the ids of one sequence into text as they come."""

    def push(self, token: int) -> str:
        """Return the text that is complete with this id, which may be none."""
        ...

    def flush(self) -> str:
        """Return the rest at the end; bytes that make no character become U+FFFD."""
        ...


class DetokenizerFactory:
    """Knows how one tokenizer's ids become text. One thread may use it."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer`` is a fast tokenizer of transformers, not shared with another thread."""
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._table = byte_table(tokenizer)

    def new(self, before: Sequence[int] = (), kept: frozenset[int] = frozenset()) -> Detokenizer:
        """Return a detokenizer that shows no special tokens but those that are ``kept``.

        Its text goes on with that of the ids ``before`` and keeps its first space then.
        """
        special = self._special - kept if kept else self._special
        if self._table is not None:
            return _ByteDetokenizer(self._table, special)
        shown = [token for token in before[-_LONGEST_RUN:] if token not in special]
        return _WindowDetokenizer(self._tokenizer, special, shown)

    def token_text(self, token: int) -> str:
        """Return the text of one id alone, special ones too, for log-probabilities."""
        text: str = self._tokenizer.decode([token])
        return text


class _ByteDetokenizer:
    """Detokenizes byte-level vocabularies: ids are bytes, and UTF-8 says where text may end."""

    def __init__(self, table: "ByteTable", special: frozenset[int]) -> None:
        self._table = table
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        return self._decoder.decode(self._table[token])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Detokenizes any other vocabulary: compares a few ids' text with and without the new ones.

    The ids before the new ones are decoded too, because many decoders treat the first id
    differently (they strip its space).
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], shown: list[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._shown = shown  #: the last ids whose text is out
        self._new: list[int] = []

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        self._new.append(token)
        text = self._new_text()
        if not text or (text.endswith(_REPLACEMENT) and len(self._new) < _LONGEST_RUN):
            return ""
        return self._give(text)

    def flush(self) -> str:
        return self._give(self._new_text()) if self._new else ""

    def _new_text(self) -> str:
        before = self._decode(self._shown)
        return self._decode(self._shown + self._new)[len(before) :]

    def _give(self, text: str) -> str:
        self._shown, self._new = self._new, []
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids)
        return text


class ByteTable(dict[int, bytes]):
    """Holds the bytes of each id of a byte-level vocabulary, looked up when first needed."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._backend = tokenizer.backend_tokenizer

    def __missing__(self, token: int) -> bytes:
        self[token] = data = self._look_up(token)
        return data

    def _look_up(self, token: int) -> bytes:
        name = self._backend.id_to_token(token)
        if name is None:  # spare rows of the embedding have no token
            return b""
        letters = _byte_letters()
        if all(letter in letters for letter in name):
            return bytes(letters[letter] for letter in name)
        return str(name).encode()


def byte_table(tokenizer: Any) -> ByteTable | None:
    """Return the bytes of a tokenizer's ids; None if its ids are not bytes."""
    return ByteTable(tokenizer) if _is_byte_level(tokenizer) else None


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter that byte-level BPE writes.

    Printable bytes stand for themselves, the others for the letters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    letters.update({chr(0x100 + order): byte for order, byte in enumerate(others)})
    return letters


def _is_byte_level(tokenizer: Any) -> bool:
    if tokenizer.clean_up_tokenization_spaces:
        return False
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return False
    return bool(json.loads(decoder.__getstate__()).get("type") == "ByteLevel")
