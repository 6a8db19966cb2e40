"""Makes a byte-level tokenizer on the spot, of the words of Python's own documentation."""

import pydoc
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = 2000
ROWS = 2048  #: of the embedding: spare ones, as real models have


def train_tokenizer(
    special_tokens: Sequence[str], texts: Iterable[str] | None = None, size: int = WORDS
) -> Tokenizer:
    """Train a byte-level tokenizer of ``size`` tokens; the special ones have the first ids.

    ``texts``: what it is trained on; None: text that every Python has.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_prose() if texts is None else texts, trainer)
    return tokenizer


def _prose() -> Iterator[str]:
    """Return docstrings of the standard library: text that every Python has, always the same."""
    for name in (
        "argparse",
        "asyncio/base_events",
        "decimal",
        "logging/__init__",
        "pydoc",
        "typing",
    ):
        source = (Path(pydoc.__file__).parent / f"{name}.py").read_text("utf-8")
        for text in source.split('"""')[1::2]:
            yield re.sub(r"[^A-Za-z ,.]+", " ", text)
