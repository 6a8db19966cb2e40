"""Counts what the guard finds, by class and never by text, and says when the guard itself fails."""

from collections import Counter
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry

from bitinglip.errors import BitingLipError, ContentFiltered, GuardFailed, PersonalDataDetected
from bitinglip.settings.guard import Guard, ListMode, Mode
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.tally import Tally

log = structlog.get_logger(__name__)

WORDS, IMAGES = "words", "images"  #: classes beside those of personal data
Direction = Literal["input", "output"]
Found = Counter[str]  #: matches by class


class Watch:
    """Counts what the guard finds, and tells whether it works."""

    def __init__(self, registry: CollectorRegistry, health: Health, settings: Guard) -> None:
        self._closes = settings.on_error == "close"
        self._health = health
        self._failing: set[Direction] = set()
        self._detections = Tally(
            "bitinglip_guard_detections_total",
            "What the guard found, by class",
            ["class", "direction", "action"],
            registry,
        )
        self._failures = Tally(
            "bitinglip_guard_failures_total",
            "Texts that the guard failed on",
            ["direction", "action"],
            registry,
        )

    def found(self, found: Found, direction: Direction, action: Mode | ListMode) -> None:
        for name, count in found.items():
            self._detections.add((name, direction, action), count)

    def failed(self, error: Exception, direction: Direction) -> GuardFailed | None:
        """Note that the guard failed; return the error to raise if the text may not pass.

        The message of the error is logged nowhere, since it may hold a part of the text.
        """
        self._failures.add((direction, "refused" if self._closes else "passed"))
        self._failing.add(direction)
        then = "they are refused" if self._closes else "they pass unchecked"
        self._health.degrade(
            "guard", direction, f"texts cannot be checked ({type(error).__name__}); {then}"
        )
        log.error("the guard failed", direction=direction, error=type(error).__name__)
        return GuardFailed() if self._closes else None

    def works(self, direction: Direction) -> None:
        """Note that the guard has checked a text."""
        if direction in self._failing:
            self._failing.discard(direction)
            self._health.recover("guard", direction)

    def words_read(self, count: int) -> None:
        """Note that the file of words was read again."""
        self._health.recover("guard", "words")
        log.info("the list of words was read again", entries=count)

    def words_unread(self) -> None:
        """Note that the file of words has changed and cannot be read."""
        self._health.degrade(
            "guard", "words", "the file of words has changed and cannot be read; the old list stays"
        )


def refusal(found: Found, direction: Direction, param: str | None = None) -> BitingLipError:
    """Return the error for a text that holds personal data; it names classes, never the text."""
    classes = sorted(found)
    what = "The request holds" if direction == "input" else "The answer was ended: it holds"
    return PersonalDataDetected(
        f"{what} personal data or secrets ({', '.join(classes)}).",
        param=param,
        details={"classes": classes, "count": found.total()},
    )


def filtered(count: int, direction: Direction, param: str | None = None) -> BitingLipError:
    """Return the error for a text with listed words; it does not say which."""
    what = "The request holds" if direction == "input" else "The answer was ended: it holds"
    return ContentFiltered(
        f"{what} words that this server does not allow.", param=param, details={"count": count}
    )
