"""Splits texts into pieces that a model can speak at once. Pure.

Texts are cut at the ends of sentences; pieces that are too long still, at clauses, then between
words, then anywhere. Nothing is lost, and no piece is longer than the model reads.
"""

import re
from collections.abc import Callable, Iterator

#: the end of a sentence: marks with what closes a quotation, then blanks; CJK marks need none
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]»]*\s+|(?<=[。！？])[”’」』）]*\s*|\n+|(?<=[।॥])\s*")
_CLAUSE = re.compile(r"(?<=[,;:—–])\s+|(?<=[，、；：])\s*")
_WORD = re.compile(r"\s+")
#: after these a full stop ends no sentence
_SHORT = re.compile(
    r"(?:^|\s)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No|Nr|z\.B|bzw|ca|Hr|Fr|Sra?|M|Mme)\.$"
)


def split_sentences(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Return the text's sentences, each of which ``fits``; short ones are not joined."""
    found = []
    for sentence in _sentences(text):
        found += list(_fitting(sentence, fits, (_CLAUSE, _WORD)))
    return found


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for mark in _SENTENCE.finditer(text):
        piece = text[begin : mark.end()].strip()
        if not piece or (_SHORT.search(piece) and "\n" not in mark.group()):
            continue
        yield piece
        begin = mark.end()
    if rest := text[begin:].strip():
        yield rest


def _fitting(
    piece: str, fits: Callable[[str], bool], cuts: tuple[re.Pattern[str], ...]
) -> Iterator[str]:
    """Yield the piece, or the longest parts of it that fit, cut at the best of ``cuts``."""
    if fits(piece):
        yield piece
        return
    if not cuts:
        yield from _anywhere(piece, fits)
        return
    joined = ""
    for part in _parts(piece, cuts[0]):
        longer = joined + part
        if joined and not fits(longer.strip()):
            yield from _fitting(joined.strip(), fits, cuts[1:])
            longer = part
        joined = longer
    if joined.strip():
        yield from _fitting(joined.strip(), fits, cuts[1:])


def _parts(piece: str, cut: re.Pattern[str]) -> Iterator[str]:
    begin = 0
    for mark in cut.finditer(piece):
        yield piece[begin : mark.end()]
        begin = mark.end()
    yield piece[begin:]


def _anywhere(piece: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Yield as many letters as fit at a time: of a very long word, or of text without blanks."""
    while piece:
        length = len(piece)
        while length > 1 and not fits(piece[:length]):
            length //= 2
        yield piece[:length]
        piece = piece[length:]
