"""Guards what callers send to models, and what comes back, by the modes of each job."""

import asyncio
from collections import Counter as Tally
from collections.abc import Callable
from functools import partial

from bitinglip.errors import InvalidRequest
from bitinglip.file_stamp import FileStamp, file_stamp
from bitinglip.guard.checked import TextCheck
from bitinglip.guard.escapes import Escapes
from bitinglip.guard.inputs import has_token_ids, is_json, texts_of, with_texts
from bitinglip.guard.modes import Modes, modes_of
from bitinglip.guard.outputs import OutputGuard, output_of
from bitinglip.guard.scanner import Scanner, patterns_of
from bitinglip.guard.watch import WORDS, Found, Watch, filtered, refusal
from bitinglip.guard.words import WordScan, read_words
from bitinglip.settings import Settings, Tier
from bitinglip.settings.guard import Mode
from bitinglip.settings_loader import SettingsError
from workers import protocol

RELOAD_SECONDS = 5.0  #: between two looks at the file of words
_SLICE = 4096  #: characters that are scanned at once; the event loop gets a turn after each
_TEXTS = 16  #: that are looked at in a turn of the event loop, however short they are


class Guard:
    """Checks prompts, and makes the checks of results."""

    def __init__(self, settings: Settings, watch: Watch) -> None:
        """Raise SettingsError for a list of words that cannot be read."""
        self._settings = settings.guard
        self._kinds = frozenset(settings.guard.classes)
        patterns_of(self._kinds)  # they are compiled now, and no request waits for it
        self._watch = watch
        self._modes: dict[tuple[str, Mode], Modes | None] = {}
        self._words_seen = self._words_state()
        self._words = read_words(settings.guard)

    def words_digest(self) -> bytes:
        """Return what differs where another list of words is looked for."""
        return self._words.digest

    def modes(self, name: str, tier: Tier, floor: Mode = "off") -> Modes | None:
        """Return the modes of a key's jobs, by its tier; None if nothing is looked for."""
        if (name, floor) not in self._modes:
            self._modes[name, floor] = modes_of(self._settings, tier.guard, floor)
        return self._modes[name, floor]

    async def checked(self, work: protocol.Job, modes: Modes) -> protocol.Job:
        """Return the job as a model may have it.

        Raises PersonalDataDetected or ContentFiltered where that is to be refused, InvalidRequest
        for tokens instead of text, and GuardFailed.
        """
        if modes.input == modes.words_input == "off":
            return work
        if has_token_ids(work):
            raise InvalidRequest(
                "Token ids cannot be checked for what this server does not let pass; send text.",
                param="prompt",
            )
        shown: dict[str, str] = {}
        found: dict[str, Found] = {}
        for number, (field, text) in enumerate(texts_of(work).items(), 1):
            if not number % _TEXTS:
                await asyncio.sleep(0)
            try:
                shown[field], found[field] = await self._scan(
                    text, modes, Escapes() if is_json(field) else None
                )
            except Exception as error:  # noqa: BLE001  the setting says what happens then
                if (refused := self._watch.failed(error, "input")) is not None:
                    raise refused from None
                return work
        self._watch.works("input")
        self._refuse(found, modes)
        return with_texts(work, shown) if modes.input == "redact" and any(found.values()) else work

    def output(self, work: protocol.Job, modes: Modes) -> OutputGuard | None:
        """Return what guards the events of a job; None if they pass as they are."""
        check = partial(TextCheck, self._kinds, modes, self._words, self._watch)
        return output_of(work, modes, check, self._watch)

    async def reload(self, on_change: Callable[[], None]) -> None:
        """Read the file of words again if it has changed; a bad one leaves the list as it is.

        ``on_change`` is called once another list is in use.
        """
        state = await asyncio.to_thread(self._words_state)
        if state == self._words_seen:
            return
        try:
            self._words = await asyncio.to_thread(read_words, self._settings)
        except SettingsError:
            self._watch.words_unread()
        else:
            self._watch.words_read(len(self._words))
            on_change()
        self._words_seen = state

    def _words_state(self) -> FileStamp | None:
        """Return what changes when the file of words does; None without a file."""
        path = self._settings.words_file
        return None if path is None else file_stamp(path)

    async def _scan(self, text: str, modes: Modes, escapes: Escapes | None) -> tuple[str, Found]:
        """Redact a text and count what was found; a long one leaves the loop its turns."""
        scanner = Scanner(self._kinds) if modes.input != "off" else None
        words = WordScan(self._words) if modes.words_input != "off" else None
        shown: list[str] = []
        found: Found = Tally()
        for start in range(0, len(text), _SLICE):
            if start:
                await asyncio.sleep(0)
            part = text[start : start + _SLICE]
            last = start + _SLICE >= len(text)
            if escapes is not None:
                part = escapes.feed(part, last=last)
            if words is not None and (listed := words.feed(part, last=last)):
                found[WORDS] += listed
            if scanner is None:
                continue
            pieces = scanner.feed(part, last=last)
            shown += [each.text for each in pieces] if escapes is None else [escapes.shown(pieces)]
            found.update(each.kind for each in pieces if each.kind is not None and each.counts)
        return "".join(shown), found

    def _refuse(self, found: dict[str, Found], modes: Modes) -> None:
        """Count what was found; raise the error for what is not allowed."""
        words = {field: each.pop(WORDS) for field, each in found.items() if WORDS in each}
        data = {field: each for field, each in found.items() if each}
        if words:
            count = sum(words.values())
            self._watch.found(Tally({WORDS: count}), "input", modes.words_input)
            if modes.words_input == "block":
                raise filtered(count, "input", next(iter(words)))
        if data:
            both: Found = sum(data.values(), Tally())
            self._watch.found(both, "input", modes.input)
            if modes.input == "block":
                raise refusal(both, "input", next(iter(data)))
