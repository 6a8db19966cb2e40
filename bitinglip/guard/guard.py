"""The guard: what callers may send to models, and what comes back, by the modes of each job."""

import asyncio
from collections import Counter as Tally
from functools import lru_cache, partial

from bitinglip.guard.inputs import texts_of, with_texts
from bitinglip.guard.modes import Modes, modes_of
from bitinglip.guard.outputs import Checked, Output, output_of
from bitinglip.guard.scanner import Scanner
from bitinglip.guard.watch import Found, Watch, refusal
from bitinglip.settings import Settings, Tier
from bitinglip.settings.guard import Mode
from workers import protocol

_SLICE = 16_384  #: characters that are scanned at once; the event loop gets a turn after each


class Guard:
    """Checks prompts, and makes the checks of results."""

    def __init__(self, settings: Settings, watch: Watch) -> None:
        self._settings = settings.guard
        self._kinds = frozenset(settings.guard.classes)
        self._watch = watch
        self._modes = lru_cache(maxsize=64)(partial(modes_of, settings.guard))

    def modes(self, tier: Tier, floor: Mode = "off") -> Modes | None:
        """Return the modes of a key's jobs; None if nothing is looked for."""
        return self._modes(tier.guard, floor)

    async def checked(self, work: protocol.Job, modes: Modes) -> protocol.Job:
        """Return the job as a model may have it.

        Raises PersonalDataDetected where that is to be refused, and GuardFailed.
        """
        if modes.input == "off":
            return work
        shown, all_found, param = {}, Tally[str](), None
        for field, text in texts_of(work).items():
            try:
                shown[field], found = await self._redact(text)
            except Exception as error:  # noqa: BLE001  the setting says what happens then
                if (refused := self._watch.failed(error, "input")) is not None:
                    raise refused from None
                return work
            if found:
                param = param or field
                all_found += found
        self._watch.works("input")
        if not all_found:
            return work
        self._watch.found(all_found, "input", modes.input)
        if modes.input == "block":
            raise refusal(all_found, "input", param)
        return with_texts(work, shown) if modes.input == "redact" else work

    def output(self, work: protocol.Job, modes: Modes) -> Output | None:
        """Return what guards the events of a job; None if they pass as they are."""
        if modes.output == "off":
            return None
        return output_of(work, partial(Checked, self._kinds, modes.output, self._watch))

    async def _redact(self, text: str) -> tuple[str, Found]:
        """Redact a text and count what was found; a long one leaves the loop its turns."""
        scanner, shown, found = Scanner(self._kinds), [], Tally[str]()
        for start in range(0, len(text), _SLICE):
            if start:
                await asyncio.sleep(0)
            end = start + _SLICE
            for piece in scanner.feed(text[start:end], last=end >= len(text)):
                shown.append(piece.text)
                if piece.kind is not None and piece.counts:
                    found[piece.kind] += 1
        return "".join(shown), found
