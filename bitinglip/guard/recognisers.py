"""Lists what the guard recognises, as data: one row for each shape of personal data and secrets.

A candidate begins with a character of ``first`` that no character of ``before`` precedes, goes on
with ``rest``, and no character of ``after`` follows. ``accept`` says which part of it is meant.
All of that fits into 63 characters, so that a stream is held back by so many at the most; what may
be longer is told by its beginning, and then ``tail`` eats the rest, however long.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from bitinglip.guard import numbers, texts
from bitinglip.guard.patterns import (
    Part,
    came,
    chars,
    either,
    group,
    joined,
    optional,
    repeated,
    text,
    words,
)
from bitinglip.guard.tails import PemBlock, Run, Tail
from bitinglip.settings.guard import PersonalData

LONGEST = 63  #: characters of a candidate
#: returns the length of what is meant, or where it begins and ends; 0 is no match
Accept = Callable[[str], int | tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recogniser:
    """Describes a shape: where it may begin, how it goes on, and which part of a candidate is
    meant."""

    name: str  #: for people, in the documentation
    kind: PersonalData
    first: str  #: a set of characters, as in an expression
    rest: Part
    before: str = r"\w"
    after: str = ""
    accept: Accept = len
    tail: Tail | None = None
    in_groups: bool = False  #: a candidate that ends inside a group of digits ends before it
    #: a text without any of these has no match; without this, one without digits has none
    needs: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        return 1 + self.rest.longest


#: Latin, Greek and Cyrillic letters: scripts that have spaces between words
_LETTERS = r"0-9A-Za-z_\u00c0-\u024f\u0370-\u052f"
_LOCAL, _DOMAIN = rf"{_LETTERS}.%+\-", rf"{_LETTERS}.\-"
_HEX, _ALNUM, _BASE64URL = "0-9A-Fa-f", "0-9A-Za-z", r"0-9A-Za-z_\-"
_VALUE = r"0-9A-Za-z+/_=~!@#$%\^&*\-"
_WORD = r"\w"
_NUMBER = r"\w+/\-"  #: no telephone number begins after these
_SHORT = texts.SHORT_LOCAL

_digit = chars("0-9", 1)
_gap = chars(r" \-", 1, 2)
_phone_gap = chars(r" .()/\-", 0, 2)
_point = chars(r" .\-", 1)
_space, _dash = chars(" ", 0, 1), chars(r"\-", 0, 1)
_quote, _blank = chars("\"'", 0, 1), chars(r" \t", 0, 2)


def _digits(least: int, most: int | None = None) -> Part:
    return chars("0-9", least, most)


def _groups(gap: Part, *sizes: int) -> Part:
    """Match groups of digits; the first digit of the first one is matched already."""
    parts = [_digits(sizes[0] - 1)] if sizes[0] > 1 else []
    for size in sizes[1:]:
        parts += [gap, _digits(size)]
    return joined(*parts)


def _phone_digits(least: int, most: int) -> Part:
    return repeated(joined(_phone_gap, _digit), least, most)


def _key(
    name: str,
    *beginnings: str,
    rest: Part,
    tail: str = _BASE64URL,
    accept: Accept = len,
) -> Recogniser:
    """Make a row for secrets that begin with fixed texts, all with the same character."""
    return Recogniser(
        name=name,
        kind="secret",
        first=re.escape(beginnings[0][0]),
        before=_ALNUM,
        rest=joined(either(*(text(each[1:]) for each in beginnings)), rest),
        accept=accept,
        tail=Run(tail),
        needs=beginnings,
    )


#: by their order where two begin at the same place
RECOGNISERS: tuple[Recogniser, ...] = (
    Recogniser(
        name="e-mail address",
        kind="email",
        first=_LOCAL,
        before=_LOCAL,
        rest=either(
            joined(chars(_LOCAL, 0, _SHORT - 1), text("@"), chars(_DOMAIN, 1, texts.SHORT_DOMAIN)),
            joined(chars(_LOCAL, _SHORT, 59), text("@"), chars(_DOMAIN, 1)),
        ),
        accept=texts.email,
        tail=Run(_DOMAIN),
        needs=("@",),
    ),
    Recogniser(
        name="payment card (issuer, length and check digit)",
        kind="card",
        first="2-6",
        rest=either(
            _digits(12, 18),
            joined(_groups(_gap, 4, 4, 4, 4), optional(joined(_gap, _digits(1, 3)))),
            _groups(_gap, 4, 6, 5),
            _groups(_gap, 4, 6, 4),
            joined(
                came("0-9", before=r"[0-9][ \-]"),
                repeated(joined(chars(r" \-", 1), _digit), 12, 18),
            ),
        ),
        accept=numbers.card,
        in_groups=True,
    ),
    Recogniser(
        name="social security number of the United States",
        kind="national_id",
        first="0-8",
        rest=joined(_digits(2), chars(r" \-", 1), _digits(2), chars(r" \-", 1), _digits(4)),
        after=r"\w\-",
        accept=numbers.american_ssn,
    ),
    Recogniser(
        name="tax number of Germany (check digit)",
        kind="national_id",
        first="1-9",
        rest=either(_digits(10), _groups(chars(" ", 1), 2, 3, 3, 3)),
        after=_WORD,
        accept=numbers.german_tax_id,
    ),
    Recogniser(
        name="NIR of France (key)",
        kind="national_id",
        first="12",
        rest=joined(
            *(_space, _digits(2), _space, _digits(2), _space, _digit, chars("0-9AB", 1)),
            *(_space, _digits(3), _space, _digits(3), _space, _digits(2)),
        ),
        after=_WORD,
        accept=numbers.french_nir,
    ),
    Recogniser(
        name="DNI or NIE of Spain (letter)",
        kind="national_id",
        first="0-9XYZ",
        rest=either(
            joined(came("0-9"), _digits(7), _dash, chars("A-Z", 1)),
            joined(came("XYZ"), _dash, _digits(7), _dash, chars("A-Z", 1)),
        ),
        after=_WORD,
        accept=numbers.spanish_dni,
    ),
    Recogniser(
        name="CPF of Brazil (check digits)",
        kind="national_id",
        first="0-9",
        rest=joined(
            *(_digits(2), text("."), _digits(3), text("."), _digits(3), text("-"), _digits(2)),
        ),
        after=_WORD,
        accept=numbers.brazilian_cpf,
    ),
    Recogniser(
        name="IPv4 address",
        kind="ip_address",
        first="0-9",
        before=r"\w.",
        rest=joined(
            _digits(0, 2),
            repeated(joined(text("."), _digits(1, 3)), 3, 3),
            optional(joined(text("."), _digits(0, 1))),
        ),
        after=_WORD,
        accept=texts.ipv4,
    ),
    Recogniser(
        name="telephone number with a calling code",
        kind="phone",
        first="+0",
        before=_NUMBER,
        rest=joined(
            either(came("+"), joined(came("0", before="[0-9][ .]"), text("0"))),
            chars("1-9", 1),
            _phone_digits(7, 14),
        ),
        accept=numbers.international_phone,
        in_groups=True,
    ),
    Recogniser(
        name="telephone number of North America",
        kind="phone",
        first="(1-9",
        before=_NUMBER,
        rest=either(
            joined(
                came("("),
                chars("2-9", 1),
                _digits(2),
                text(")"),
                chars(r" .\-", 0, 2),
                _digits(3),
                _point,
                _digits(4),
            ),
            joined(came("1"), _point, _digits(3), _point, _digits(3), _point, _digits(4)),
            joined(came("2-9"), _digits(2), _point, _digits(3), _point, _digits(4)),
        ),
        after=_WORD,
        accept=numbers.american_phone,
    ),
    Recogniser(
        name="telephone number with a trunk zero (Europe, Australia, Japan and others)",
        kind="phone",
        first="(0",
        before=_NUMBER,
        rest=joined(
            came("(0", before="[0-9][ .]"),
            either(came("0"), joined(came("("), text("0"))),
            chars("1-9", 1),
            _phone_digits(7, 10),
        ),
        accept=numbers.national_phone,
        in_groups=True,
    ),
    Recogniser(
        name="IBAN (length by country, check digits)",
        kind="iban",
        first="A-Z",
        rest=joined(
            chars("A-Z", 1),
            _digits(2),
            either(
                group(_ALNUM, 30),
                repeated(joined(chars(r" \-", 1), group(_ALNUM, 4)), 2, 8),
            ),
        ),
        accept=numbers.iban,
    ),
    Recogniser(
        name="national insurance number of the United Kingdom",
        kind="national_id",
        first="A-CEGHJ-PR-TW-Z",
        rest=joined(
            *(chars("A-CEGHJ-NPR-TW-Z", 1), _space, _digits(2), _space, _digits(2)),
            *(_space, _digits(2), _space, chars("A-D", 1)),
        ),
        after=_WORD,
        accept=numbers.british_nino,
    ),
    Recogniser(
        name="tax code of Italy (check letter)",
        kind="national_id",
        first="A-Z",
        rest=joined(
            *(chars("A-Z", 5), _digits(2), chars("A-EHLMPRST", 1), _digits(2)),
            *(chars("A-Z", 1), _digits(3), chars("A-Z", 1)),
        ),
        after=_WORD,
        accept=numbers.italian_tax_code,
    ),
    Recogniser(
        name="MAC address",
        kind="mac_address",
        first=_HEX,
        before=r"\w:\-",
        rest=joined(
            chars(_HEX, 1),
            either(
                repeated(joined(text(":"), chars(_HEX, 2)), 5, 5),
                repeated(joined(text("-"), chars(_HEX, 2)), 5, 5),
            ),
        ),
        after=r"\w:\-",
        needs=(":", "-"),
    ),
    Recogniser(
        name="IPv6 address",
        kind="ip_address",
        first=f"{_HEX}:",
        before=r"\w:.",
        rest=joined(chars(_HEX, 0, 3), text(":"), chars(f"{_HEX}:.", 1, 40)),
        after=_WORD,
        accept=texts.ipv6,
        needs=(":",),
    ),
    _key("key of this server", "blk_live_", rest=chars(_ALNUM, 4), tail=r"0-9A-Za-z_"),
    _key("key of OpenAI or Anthropic", "sk-", rest=chars(_BASE64URL, 20), accept=texts.mixed),
    _key("key of Stripe", "sk_live_", "sk_test_", rest=chars(_ALNUM, 16), accept=texts.mixed),
    _key("key of Slack", "xoxb-", "xoxa-", "xoxp-", "xoxr-", "xoxs-", "xoxe-", rest=_digit),
    _key("access key of AWS", "AKIA", "ASIA", rest=chars("0-9A-Z", 16), tail=_ALNUM),
    _key("key of Google", "AIza", rest=chars(_BASE64URL, 35)),
    _key(
        "token of GitHub",
        *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        rest=chars(f"{_ALNUM}_", 20),
        tail=f"{_ALNUM}_",
        accept=texts.mixed,
    ),
    _key("token of GitLab", "glpat-", rest=chars(_BASE64URL, 20)),
    _key("token of Hugging Face", "hf_", rest=chars(_ALNUM, 30), accept=texts.mixed),
    _key("token of npm", "npm_", rest=chars(_ALNUM, 30), accept=texts.mixed),
    _key(
        "JSON web token",
        "eyJ",
        rest=either(
            joined(chars(_BASE64URL, 10, 50), text("."), chars(_BASE64URL, 2)),
            chars(_BASE64URL, 51),
        ),
        tail=rf"{_BASE64URL}.",
    ),
    Recogniser(
        name="private key (PEM)",
        kind="secret",
        first=r"\-",
        before=r"\-",
        rest=joined(text("----BEGIN "), chars("A-Z0-9 ", 7, 40), text("-----")),
        accept=texts.private_key,
        tail=PemBlock(),
        needs=("-----BEGIN ",),
    ),
    Recogniser(
        name="assignment of a secret (the value looks random)",
        kind="secret",
        first="APSTapst",
        before=_ALNUM,
        rest=joined(
            either(
                joined(
                    came("Aa"),
                    words("pi_key", "pi-key", "pikey", "pi key", "ccess_key", "ccesskey"),
                ),
                joined(came("Pp"), words("assword", "asswd", "assphrase", "wd", "rivate_key")),
                joined(came("Ss"), words("ecret")),
                joined(came("Tt"), words("oken")),
            ),
            *(_quote, _blank, either(text("=>"), text("="), text(":")), _blank, _quote),
            chars(_VALUE, 12, 24),
        ),
        accept=texts.random_value,
        tail=Run(_VALUE),
        needs=("=", ":"),
    ),
)
