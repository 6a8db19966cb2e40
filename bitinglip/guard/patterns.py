"""Patterns are built of parts, so that each knows its own beginnings.

A stream may be cut anywhere. Whether the end of what has come could still become a match is asked
of a second expression, ``begun``, which matches every beginning of what the first one matches. Both
are made from the same parts, so they cannot disagree. No part repeats another without a bound, and
what repeats gives nothing back, so both take linear time.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Holds a piece of a pattern: expressions for all of it and for its beginnings,
    and its length."""

    whole: str
    begun: str  #: matches each beginning, the empty one and the whole too
    longest: int  #: characters


def chars(members: str, least: int, most: int | None = None) -> Part:
    """Match ``least`` to ``most`` characters of a set; what follows must not be of the set."""
    most = least if most is None else most
    count = f"{{{least}}}" if least == most else f"{{{least},{most}}}+"
    return Part(f"[{members}]{count}", f"[{members}]{{0,{most}}}+", most)


def group(members: str, most: int) -> Part:
    """Match 1 to ``most`` characters of a set that none of letters and digits follows."""
    part = chars(members, 1, most)
    return Part(rf"{part.whole}(?!\w)", part.begun, most)


def came(members: str, *, before: str = "") -> Part:
    """Require of what is matched already that it ends with a character of a set.

    ``before`` is an expression of one or two characters that do not precede that character.
    """
    required = f"(?<=[{members}])" + (f"(?<!{before}.)" if before else "")
    return Part(required, required, 0)


def text(literal: str) -> Part:
    """Match this text, in this case."""
    begun = ""
    for character in reversed(literal):
        begun = f"(?:{re.escape(character)}{begun})?"
    return Part(re.escape(literal), begun, len(literal))


def words(*literals: str) -> Part:
    """Match any of these texts, in any case; one that begins with another comes first."""
    any_of = either(*(text(each) for each in literals))
    return Part(f"(?i:{any_of.whole})", f"(?i:{any_of.begun})", any_of.longest)


def joined(*parts: Part) -> Part:
    """Match one part after another."""
    first, *rest = parts
    if not rest:
        return first
    second = joined(*rest)
    return Part(
        first.whole + second.whole,
        f"(?:{first.whole}{second.begun}|{first.begun})",
        first.longest + second.longest,
    )


def either(*parts: Part) -> Part:
    """Match one of the parts; the first that matches is taken."""
    return Part(
        f"(?:{'|'.join(part.whole for part in parts)})",
        f"(?:{'|'.join(part.begun for part in parts)})",
        max(part.longest for part in parts),
    )


def optional(part: Part) -> Part:
    return Part(f"(?:{part.whole})?+", part.begun, part.longest)


def repeated(part: Part, least: int, most: int) -> Part:
    """Match the part ``least`` to ``most`` times."""
    return Part(
        f"(?:{part.whole}){{{least},{most}}}+",
        f"(?:{part.whole}){{0,{most - 1}}}+{part.begun}",
        most * part.longest,
    )
