"""Shows an answer as Markdown while it comes: what is complete is set, the rest is shown as it is.

A block is complete at a blank line, code at its closing fence; what is complete is printed once and
scrolls away like any output, so long answers need no redrawing.
"""

import re
from typing import TYPE_CHECKING

from cli.show.output import clean

if TYPE_CHECKING:
    from rich.console import Console

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_KEPT_FREE = 2  #: lines of the terminal that the unfinished block leaves


class MarkdownWriter:
    """Takes the pieces of one answer. ``close`` ends it, whatever has come."""

    def __init__(self, screen: "Console") -> None:
        from rich.live import Live

        self._screen = screen
        self._text = ""
        self._live = Live(console=screen, transient=True, refresh_per_second=12)
        self._live.start()

    def write(self, piece: str) -> None:
        """Show what has come; prints the blocks that are complete with it."""
        self._text += clean(piece)
        while (end := end_of_block(self._text)) is not None:
            self._print(self._text[:end])
            self._text = self._text[end:]
        self._live.update(self._rest())

    def close(self) -> None:
        self._live.update("")
        self._live.stop()
        self._print(self._text)
        self._text = ""

    def _print(self, block: str) -> None:
        from rich.markdown import Markdown

        if block.strip():
            # A link of a model's would be hidden behind its text.
            self._screen.print(Markdown(block, hyperlinks=False, code_theme="ansi_dark"))
            self._screen.print()

    def _rest(self) -> str:
        """Return as much of the unfinished block as the terminal has lines for, its end."""
        lines = self._text.split("\n")
        return "\n".join(lines[-max(1, self._screen.size.height - _KEPT_FREE) :])


def end_of_block(text: str) -> int | None:
    """Return where the first block of a text ends; None if it may go on. Pure."""
    fence, at, seen = "", 0, False
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            return None
        at += len(line)
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and line.strip() == found[1]:
                return at
        elif found:
            if seen:
                return at - len(line)
            fence, seen = found[1], True
        elif line.strip():
            seen = True
        elif seen:
            return at
    return None
