"""Recognisers find personal data, and pass what only looks like it."""

import typing

import pytest

from bitinglip.guard.recognisers import LONGEST, RECOGNISERS
from bitinglip.guard.scanner import redact
from bitinglip.settings.guard import PersonalData

ALL = frozenset(typing.get_args(PersonalData))
KEY = "blk_live_abc123ABC456_" + "x" * 49
WEB_TOKEN = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc-def"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEvQ/+9=\nabc=\n-----END RSA PRIVATE KEY-----"

FOUND = {
    "e-mail address": [
        ("write to john.doe+x@mail.example.co.uk.", "write to [EMAIL]."),
        ("<müller@bücher.example>", "<[EMAIL]>"),
        ("请联系john@example.com谢谢", "请联系[EMAIL]谢谢"),
        (f"{'v' * 50}@bounce.example.com, ok", "[EMAIL], ok"),
        (f"a@{'long.' * 20}com ok", "[EMAIL] ok"),
    ],
    "payment card (issuer, length and check digit)": [
        ("card 4111 1111 1111 1111 12 times", "card [CARD] 12 times"),
        ("12 5105-1051-0510-5100, yes", "12 [CARD], yes"),
        ("378282246310005 or 3782 822463 10005", "[CARD] or [CARD]"),
        ("3056 930902 5904", "[CARD]"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "[CARD]"),
        ("４１１１ １１１１ １１１１ １１１１", "[CARD]"),  # noqa: RUF001  full width
        ("4111\u20111111\u20111111\u20111111", "[CARD]"),
        ("41\u200b11 1111 1111 1111", "[CARD]"),
    ],
    "social security number of the United States": [("ssn 219-09-9999.", "ssn [NATIONAL_ID].")],
    "tax number of Germany (check digit)": [
        ("86095742719 or 86 095 742 719", "[NATIONAL_ID] or [NATIONAL_ID]")
    ],
    "NIR of France (key)": [
        ("2 55 08 14 168 025 38 and 255081416802538", "[NATIONAL_ID] and [NATIONAL_ID]")
    ],
    "DNI or NIE of Spain (letter)": [
        ("12345678Z, 12345678-Z, X1234567L", "[NATIONAL_ID], [NATIONAL_ID], [NATIONAL_ID]")
    ],
    "CPF of Brazil (check digits)": [("529.982.247-25", "[NATIONAL_ID]")],
    "IPv4 address": [("at 192.168.1.10. Then", "at [IP_ADDRESS]. Then")],
    "telephone number with a calling code": [
        ("call +49 30 1234567 2nd floor", "call [PHONE] 2nd floor"),
        ("+1 415 555 2671 4111 1111 1111 1111", "[PHONE] [CARD]"),
        ("0049 (0)30/1234567", "[PHONE]"),
    ],
    "telephone number of North America": [
        ("(415) 555-2671, 1-800-555-0199, 415.555.2671", "[PHONE], [PHONE], [PHONE]")
    ],
    "telephone number with a trunk zero (Europe, Australia, Japan and others)": [
        ("020 7946 0958, 030/1234567, 01 23 45 67 89", "[PHONE], [PHONE], [PHONE]"),
        ("(02) 9374 4000, 017612345678", "[PHONE], [PHONE]"),
    ],
    "IBAN (length by country, check digits)": [
        ("to DE89 3704 0044 0532 0130 00 please", "to [IBAN] please"),
        ("BE68 5390 0754 7034 thanks, GB82WEST12345698765432", "[IBAN] thanks, [IBAN]"),
    ],
    "national insurance number of the United Kingdom": [("AB 12 34 56 C", "[NATIONAL_ID]")],
    "tax code of Italy (check letter)": [("RSSMRA85T10A562S", "[NATIONAL_ID]")],
    "MAC address": [("00:1A:2b:3C:4D:5E 00-1a-2b-3c-4d-5e", "[MAC_ADDRESS] [MAC_ADDRESS]")],
    "IPv6 address": [("2001:db8::1, ::1", "[IP_ADDRESS], [IP_ADDRESS]")],
    "key of this server": [(f"use {KEY} now", "use [SECRET] now"), (KEY[:30], "[SECRET]")],
    "key of OpenAI or Anthropic": [("sk-ant-api03-abcdefghijkl12", "[SECRET]")],
    "key of Stripe": [("sk_live_abcdefghijkl1234", "[SECRET]")],
    "key of Slack": [("xoxb-123456-abcdef", "[SECRET]")],
    "access key of AWS": [("AKIAIOSFODNN7EXAMPLE", "[SECRET]")],
    "key of Google": [("AIza" + "Sy0" * 11 + "ab", "[SECRET]")],
    "token of GitHub": [("ghp_" + "a1B2" * 9, "[SECRET]"), ("github_pat_" + "a1_" * 9, "[SECRET]")],
    "token of GitLab": [("glpat-abcdefghij0123456789", "[SECRET]")],
    "token of Hugging Face": [("hf_" + "aB3" * 11, "[SECRET]")],
    "token of npm": [("npm_" + "aB3" * 12, "[SECRET]")],
    "JSON web token": [(f"x {WEB_TOKEN} y", "x [SECRET] y")],
    "private key (PEM)": [
        (f"{PEM}\nnext line.", "[SECRET]\nnext line."),
        (PEM.replace("\n", "\\n"), "[SECRET]"),
        (PEM.partition("-----END")[0], "[SECRET]"),
    ],
    "assignment of a secret (the value looks random)": [
        ("api_key = 'a8f5f167f44f4964e6c9'", "api_key = '[SECRET]'"),
        ("MY_API_KEY=zz9Plural8Zeta7Alpha;", "MY_API_KEY=[SECRET];"),
        ('{"password": "x9#kQ2!mZ7$w"}', '{"password": "[SECRET]"}'),
    ],
}

INNOCENT = [
    "On 2026-11-27 at 09:38:12 we sold 1,234,567.89 units (12 %), see 3.14159265358979.",
    "01.02.2026 and 31 12 2025; version 1.2.3.4.5 of 10.0.19045, RFC 2616, ISO 27001:2022.",
    "4111 1111 1111 1112 has a wrong check digit, as DE89 3704 0044 0532 0130 01 has.",
    "9111 1111 1111 1111 is nobody's card; 000-12-3456 and 666-12-3456 are nobody's numbers.",
    "the decorator @app.route, a@b, user@localhost, 5 @ 3 and C:\\x@y",
    "password: correct-horse-battery, token = tokenizer.encode(text), secret: yes",
    "sk-learn-contrib-forest-package and key AKIA, eyJ, ghp_short",
    "order 1234567890123 in 12345678A; phone booth 555 1234; 16 digits 1234567812345678",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "Boston, MA 02110-1301, USA; 0123456789; DFARS 252.227-7013; 02 03 2024 10",
    "mov rax, 0x7fffdeadbeef; 12:30:45; aa:bb:cc; dead:beef",
    "",
]


@pytest.mark.parametrize("name", [each.name for each in RECOGNISERS])
def test_recogniser_finds_its_shapes(name: str) -> None:
    for text, redacted in FOUND[name]:
        assert redact(text, ALL) == redacted


@pytest.mark.parametrize("text", INNOCENT)
def test_recognisers_leave_what_only_looks_alike(text: str) -> None:
    assert redact(text, ALL) == text


def test_recognisers_need_no_more_characters_than_a_stream_holds_back() -> None:
    assert max(each.longest for each in RECOGNISERS) <= LONGEST == 63


def test_classes_that_are_left_out_are_left_alone() -> None:
    text = "john@example.com, 4111 1111 1111 1111, 192.168.1.10"
    assert redact(text, frozenset({"card"})) == "john@example.com, [CARD], 192.168.1.10"
    assert redact(text, frozenset()) == text
