"""Checks one text that comes in parts, by the modes of its job."""

from collections import Counter as Tally

from bitinglip.guard.modes import Modes
from bitinglip.guard.scanner import Kinds, Piece, Scanner
from bitinglip.guard.watch import WORDS, Found, Watch, filtered, refusal
from bitinglip.guard.words import WordList, WordScan


class TextCheck:
    """Scans one text that comes in parts, and does what the modes say about what is found."""

    def __init__(self, kinds: Kinds, modes: Modes, words: WordList, watch: Watch) -> None:
        self.mode, self._words_mode = modes.output, modes.words_output
        self._watch = watch
        blocks_words = self._words_mode == "block"
        self._holds = blocks_words or self.mode in ("redact", "block")
        self._scanner = Scanner(
            frozenset() if self.mode == "off" else kinds,
            redacts=self.mode == "redact",
            hold=words.begun if blocks_words else None,
        )
        self._words = None if self._words_mode == "off" else WordScan(words)
        self._passes = False
        self.redacted = False  #: something was left out

    @property
    def altered(self) -> bool:
        return self.redacted or self._passes

    def feed(self, text: str, *, last: bool = False) -> list[Piece]:
        """Return what may be shown now.

        Raises PersonalDataDetected, ContentFiltered or GuardFailed.
        """
        if self._passes:
            return [Piece(text, len(text))]
        try:
            listed = self._words.feed(text, last=last) if self._words is not None else 0
            pieces = self._scanner.feed(text, last=last)
        except Exception as error:  # noqa: BLE001  the setting says what happens then
            if (refused := self._watch.failed(error, "output")) is not None:
                raise refused from None
            self._passes = True
            text = self._scanner.give_up() + text if self._holds else text
            return [Piece(text, len(text))]
        self._watch.works("output")
        if listed:
            self._watch.found(Tally({WORDS: listed}), "output", self._words_mode)
            if self._words_mode == "block":
                raise filtered(listed, "output")
        found: Found = Tally(each.kind for each in pieces if each.kind and each.counts)
        if found:
            self._watch.found(found, "output", self.mode)
            if self.mode == "block":
                raise refusal(found, "output")
            self.redacted = self.redacted or self.mode == "redact"
        return pieces if self._holds else [Piece(text, len(text))]
