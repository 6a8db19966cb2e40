"""The modes say what the guard does with one job: from the settings, the key's tier and the key."""

from dataclasses import dataclass
from typing import Literal

from bitinglip.settings.guard import MODES, Guard, ListMode, Mode, TierGuard


@dataclass(frozen=True, slots=True)
class Modes:
    """Says what happens to personal data and listed words in a job's prompts and results."""

    input: Mode = "off"
    output: Mode = "off"
    words_input: ListMode = "off"
    words_output: ListMode = "off"
    flagged_images: Literal["show", "refuse"] = "show"


OFF = Modes()


def modes_of(guard: Guard, tier: TierGuard, floor: Mode = "off") -> Modes | None:
    """Return the modes of a key's jobs; None if nothing is looked for.

    A tier's own modes stand in place of the general ones; a key's only make them stricter.
    """
    found = Modes(
        input=stricter(guard.input if tier.input is None else tier.input, floor),
        output=stricter(guard.output if tier.output is None else tier.output, floor),
        words_input=guard.words_input if tier.words_input is None else tier.words_input,
        words_output=guard.words_output if tier.words_output is None else tier.words_output,
        flagged_images=guard.flagged_images,
    )
    return None if found == OFF else found


def stricter(one: Mode, other: Mode) -> Mode:
    return max(one, other, key=MODES.index)
