"""Keeps what clients say from becoming control tokens, so that no client writes another's turn.

The library's way: control tokens in a client's strings are put between private marks before the
template sees them; what the template makes of the strings, the marks stay with the tokens, and the
tokens between marks are encoded as plain text. A text without control tokens is not touched.
"""

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from workers.engines.base import Refused

#: The library's marks, and one that ends a string which might begin a token. They are private
#: characters that no text has a use for; clients' are taken out.
_START, _END, _BREAK = "\U000f0000", "\U000f0001", "\U000f0003"
#: Stands where the last message ends, while a template renders a conversation that goes on. A
#: template that trims its messages takes the space.
GOES_ON = "\U000f0002 "
_PRIVATE = re.compile("[\U000f0000-\U000f0003]")
#: What becomes of them in a list that a template prints, and in JSON that it keeps to ASCII; and
#: what a client writes like that.
_ESCAPED = re.compile(r"\\+(?:U000f000|udb80\\+udc0)([0-3])")
_LIKE_ESCAPED = re.compile(r"\\(?=U000f000|udb80)")
#: Control tokens by their looks, for files that do not say so.
_LOOKS = re.compile("<[|\N{FULLWIDTH VERTICAL LINE}].+[|\N{FULLWIDTH VERTICAL LINE}]>", re.DOTALL)
#: Who may write the template's own tags, such as <think> in what an assistant has said. Real
#: control tokens that no client may write.
_TRUSTED = frozenset({"system", "assistant"})


class ControlTokens:
    """Knows the control tokens of one tokenizer and template. One thread at a time may encode."""

    def __init__(self, tokenizer: Any, literals: str) -> None:
        """``literals``: all text that stands in the template, outside and inside of strings."""
        self._backend = tokenizer.backend_tokenizer
        self._first = tokenizer.bos_token
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content]
        named = getattr(tokenizer, "chat_control_tokens", None)
        self._ids = {
            token.content: tokenizer.convert_tokens_to_ids(token.content) for token in added
        }
        control = {t.content for t in added if t.special or _LOOKS.fullmatch(t.content)}
        control |= {tokenizer.eos_token} & self._ids.keys()
        tags = {text for text in self._ids if text in (literals if named is None else set(named))}
        self._control = _Marker(control)
        self._tags = _Marker(control | {text for text in tags if not text.isspace()})
        self._plain: dict[str, list[int]] = {}
        self._split = re.compile(f"{_START}(.*?){_END}|[{_START}{_END}{_BREAK}]", re.DOTALL)

    def id_at_start_of(self, text: str) -> int | None:
        """Return the control token that a text begins with, other than the first of all texts."""
        token = self._control.at_start_of(text)
        return None if token is None or token == self._first else self._ids[token]

    def mark_messages(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return messages whose strings can be told from what the template writes."""
        return [
            (self._control if each.get("role") in _TRUSTED else self._tags).mark(each)
            for each in messages
        ]

    def mark(self, value: Any) -> Any:
        """Do the same with other values that a client gives to the template."""
        return self._control.mark(value)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered text that may hold marks. Raises Refused."""
        pieces = self._split.split(text)
        written = ["\n" + piece for piece in pieces[2::2] if piece]
        # After a line break, so that no tokenizer adds the space that it puts before a text.
        lead = self._ids_of("\n")
        encoded = iter(self._backend.encode_batch_fast(written, add_special_tokens=False))
        ids = self._ids_of(pieces[0])
        for number, piece in enumerate(pieces[1:], start=1):
            if not piece:
                continue
            if number % 2:
                ids += self._as_plain_text(piece)
                continue
            found: list[int] = next(encoded).ids
            own = found[: len(lead)] == lead
            ids += found[len(lead) :] if own else self._ids_of(piece)
        return ids

    def _ids_of(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _as_plain_text(self, token: str) -> list[int]:
        """Return the ids of a control token's letters. Raises Refused if they are the token."""
        if token not in self._plain:
            ids = self._letters(token)
            if self._ids[token] in ids:
                ids = self._letters(token[0]) + self._letters(token[1:])
            if self._ids[token] in ids:
                raise Refused(
                    "INVALID_REQUEST",
                    f"This model cannot take {token!r} as text: it is one of its control tokens.",
                    param="messages",
                )
            self._plain[token] = ids
        return self._plain[token]

    def _letters(self, text: str) -> list[int]:
        """Encode without added tokens, in the steps of the tokenizer."""
        lead, ids = self._plain_ids("\n"), self._plain_ids("\n" + text)
        return ids[len(lead) :] if ids[: len(lead)] == lead else self._plain_ids(text)

    def _plain_ids(self, text: str) -> list[int]:
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        words = [text]
        if self._backend.pre_tokenizer is not None:
            words = [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in self._backend.model.tokenize(word)]


def is_marked(text: str) -> bool:
    """Return whether a rendered text has marks."""
    return _PRIVATE.search(text) is not None


def with_marks(rendered: str) -> str:
    """Return a rendered text with its marks as they were before the template escaped them."""
    if "U000f000" not in rendered and "udb80" not in rendered:
        return rendered
    return _ESCAPED.sub(lambda found: chr(ord(_START) + int(found[1])), rendered)


def without_marks(text: str) -> str:
    """Return a text without marks."""
    return _PRIVATE.sub("", text)


class _Marker:
    """Puts marks around some tokens."""

    def __init__(self, tokens: set[str]) -> None:
        self._any = re.compile(_any_of(sorted(tokens)) if tokens else "(?!)")
        # Not those that look like words: a role may end in a letter.
        signs = [token for token in tokens if not token[0].isalnum()]
        self._beginnings = {token[:end] for token in signs for end in range(1, len(token))}
        self._longest = max(map(len, signs), default=1)

    def mark(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            return {
                key if key.isidentifier() else self._mark_text(key): self.mark(each)
                for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.mark(each) for each in value]
        return value

    def at_start_of(self, text: str) -> str | None:
        found = self._any.match(text)
        return found[0] if found else None

    def _mark_text(self, text: str) -> str:
        text = without_marks(text)
        if "\\" in text:
            text = _LIKE_ESCAPED.sub(lambda _: "\\" + _BREAK, text)
        marked = self._any.sub(f"{_START}\\g<0>{_END}", text)
        ends = range(1, min(self._longest, len(text) + 1))
        begins_one = any(text[-size:] in self._beginnings for size in ends)
        return marked + _BREAK if begins_one else marked


def _any_of(texts: list[str]) -> str:
    """Return an expression for the longest of some sorted texts that stands at a place.

    What they share at the beginning is compared once: hundreds of tokens that begin alike cost a
    long text no more than one.
    """
    by_letter = [list(group) for _, group in groupby(filter(None, texts), key=lambda text: text[0])]
    branches = []
    for group in by_letter:
        shared = _shared_start(group[0], group[-1])  # of sorted texts it is that of all
        rest = [text[len(shared) :] for text in group]
        branches.append(re.escape(shared) + (_any_of(rest) if any(rest) else ""))
    return f"(?:{'|'.join(branches)}){'?' if '' in texts else ''}"


def _shared_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[: min(len(one), len(other)) if length is None else length]
