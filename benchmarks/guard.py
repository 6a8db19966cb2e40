"""Measures the guard: a prompt of 1 KB, a token of a stream, and hostile text.

.venv/bin/python -m benchmarks.guard
"""

import re
import time
from collections.abc import Callable
from functools import partial

from bitinglip.guard.scanner import Scanner, redact
from bitinglip.guard.words import WordList, WordScan
from bitinglip.settings.guard import Guard

KINDS = frozenset(Guard().classes)
TEXTS = {
    "prose": "It was a sunny day, and everyone (children, parents, dogs) went outside to play. ",
    "numbers": "In 2026 we sold 1200 units at 45.99 each; see 12-11-2026, page 12, RFC 2616. ",
    "personal data": "Mail john@example.com or call +49 30 1234567, card 4111 1111 1111 1111. ",
    "code": 'def f(x: int) -> str:\n    return {"a": x, "token": decode(x)}  # https://a.example/b\n',
    "German": "Die süße Katze schläft über dem Ofen; niemand weiß, weshalb sie müde ist. ",
}
HOSTILE = ("a", "1-", "4444-", "DE89 ", "a@b.", "password=", "\uff11")


def main() -> None:
    print("| text | prompt of 1 KB | stream, a token | listed words, 1 KB |")
    print("|---|---|---|---|")
    listed = WordList(f"word{number} and more" for number in range(1000))
    for name, text in TEXTS.items():
        prompt = (text * 20)[:1000]
        tokens = re.findall(r" ?\w+|\W", prompt)
        whole = _best(partial(redact, prompt, KINDS))
        stream = _best(partial(_stream, tokens)) / len(tokens)
        words = _best(partial(WordScan(listed).feed, prompt, last=True))
        print(f"| {name} | {whole * 1e6:.0f} us | {stream * 1e6:.1f} us | {words * 1e6:.0f} us |")
    print("\n| hostile text | speed |\n|---|---|")
    for unit in HOSTILE:
        text = (unit * 1_000_000)[:1_000_000]
        print(f"| {unit!r} | {1 / _best(partial(redact, text, KINDS), 1):.1f} MB/s |")


def _stream(tokens: list[str]) -> None:
    scanner = Scanner(KINDS)
    for token in tokens:
        scanner.feed(token)
    scanner.feed("", last=True)


def _best(work: Callable[[], object], repeats: int = 200) -> float:
    """Return the seconds of the quickest of several runs."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
