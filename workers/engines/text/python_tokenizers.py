"""Gives tokenizers that their library computes in Python what the engine asks those in Rust for.

Marian's and M2M100's split a text by SentencePiece, and have another file that numbers the pieces:
no ``tokenizer.json`` says that. They are for prompts that an encoder reads.
"""

import warnings
from typing import Any, NamedTuple

import transformers

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  #: what SentencePiece writes for one

# Of a package that Marian's tokenizer opens and then makes no use of.
warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")


class Encoded(NamedTuple):
    ids: list[int]


class PythonBackend:
    """Encodes as one tokenizer of the library does. One thread at a time may use it."""

    decoder = None  #: pieces are joined by the library, whose rules are no description

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoded:
        """Return the ids of a text, with those that the tokenizer puts around it or without."""
        return Encoded(
            self._tokenizer.encode(
                text, add_special_tokens=add_special_tokens, truncation=False, verbose=False
            )
        )


class PieceTable(dict[int, bytes]):
    """Holds the bytes that each id of such a tokenizer stands for, looked up when first needed."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.get_vocab().values())

    def __missing__(self, token: int) -> bytes:
        # Rows of the output head without a piece say nothing.
        piece = self._tokenizer.convert_ids_to_tokens(token) if token in self._known else ""
        self[token] = data = piece.replace(_SPACE, " ").encode()
        return data


def is_python(tokenizer: Any) -> bool:
    """Return whether the library computes a tokenizer in Python."""
    return isinstance(tokenizer, transformers.PreTrainedTokenizer)


def with_backend(tokenizer: Any) -> Any:
    """Return a tokenizer of the library's in Python with a backend to encode by."""
    tokenizer.backend_tokenizer = PythonBackend(tokenizer)
    return tokenizer
