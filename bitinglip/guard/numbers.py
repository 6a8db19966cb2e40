"""Checks numbers: check digits, issuers, lengths and groups.

Each takes a candidate and returns how many of its characters are such a number, from the first on;
0 if none are. Candidates may go on into what follows, so the end is looked for between groups.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

_GROUPS = re.compile(r"[0-9]+")
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")
_ZERO = ord("0")
_SEPARATORS = str.maketrans("", "", " -")

#: digits by issuer; the longest beginning comes first
_ISSUERS = (
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"3(?:0[0-5]|[689])"), (14, 16)),  # Diners Club
    (re.compile(r"352[89]|35[3-8]"), (16, 19)),  # JCB
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"6(?:011|4[4-9]|5)"), (16, 19)),  # Discover
    (re.compile(r"62"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"5[06-9]|6"), (13, 14, 15, 16, 19)),  # Maestro
)

#: what a letter, or a digit, counts at the odd places of an Italian tax code
_ODD_PLACES = (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23
)  # fmt: skip

#: characters of an IBAN by country
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip

#: the most digits of a number with this calling code; others have up to 15
_CALLING_CODES = {
    "1": 11, "7": 11, "20": 12, "27": 11, "30": 12, "31": 11, "32": 11, "33": 11, "34": 11,
    "36": 11, "39": 13, "40": 11, "41": 11, "43": 13, "44": 12, "45": 10, "46": 11, "47": 10,
    "48": 11, "49": 13, "52": 12, "54": 13, "55": 13, "56": 11, "57": 12, "60": 12, "61": 11,
    "62": 14, "63": 12, "64": 12, "65": 10, "66": 11, "81": 12, "82": 12, "84": 11, "86": 13,
    "90": 12, "91": 12, "92": 12, "98": 12, "351": 12, "352": 12, "353": 12, "358": 13,
    "380": 12, "420": 12, "852": 11, "886": 12, "971": 12, "972": 12,
}  # fmt: skip
_MOBILE = ("015", "016", "017", "06", "07")  #: in Germany, France, the United Kingdom


def card(candidate: str) -> int:
    """Find a payment card: the issuer's length and Luhn's check digit."""
    digits = candidate.translate(_SEPARATORS)
    for length in _issued(digits[:4]):
        if length <= len(digits) and _luhn(digits[:length]):
            return next((end for _, end in _beginnings(candidate, length, length)), 0)
    return 0


def iban(candidate: str) -> int:
    """Find an IBAN: the country's length and both check digits."""
    length = IBAN_LENGTHS.get(candidate[:2].upper(), 0)
    seen = end = 0
    for end, character in enumerate(candidate, 1):  # noqa: B007  the end is what is wanted
        seen += character.isalnum()
        if seen == length:
            break
    if seen != length or candidate[end : end + 1].isalnum():
        return 0
    plain = "".join(filter(str.isalnum, candidate[:end]))
    turned = plain[4:] + plain[:4]
    return end if int("".join(str(int(each, 36)) for each in turned)) % 97 == 1 else 0


def international_phone(candidate: str) -> int:
    """Find a number with ``+`` or ``00`` and a calling code, as long as such a number may be."""
    skipped = 2 if candidate.startswith("00") else 0
    digits = _digits(candidate)[skipped:]
    codes = (digits[:length] for length in (3, 2, 1))
    most = next((_CALLING_CODES[each] for each in codes if each in _CALLING_CODES), 15)
    for _, end in _beginnings(candidate, 8 + skipped, most + skipped):
        return end
    return 0


def american_phone(candidate: str) -> int:
    """Find a number of North America: the area and the exchange begin with 2 to 9."""
    digits = _digits(candidate)[-10:]
    mixed = "." in candidate and "-" in candidate
    known = digits[0] > "1" and digits[3] > "1" and digits[:3] != "555"
    return len(candidate) if known and not mixed else 0


def national_phone(candidate: str) -> int:
    """Find a number with a trunk zero: in groups, or that of a mobile telephone."""
    groups = _GROUPS.findall(candidate)
    sizes = [len(each) for each in groups]
    if sizes[:3] == [2, 2, 4] or sizes == [5, 4]:
        return 0  # a date, or a postal code of the United States
    for digits, end in _beginnings(candidate, 9, 12):
        held = _GROUPS.findall(candidate[:end])
        if len(held) == 1:
            return end if digits.startswith(_MOBILE) and len(digits) > 9 else 0
        pairs = len(held) == 5 and all(len(each) == 2 for each in held)
        if pairs or (2 <= len(held[0]) <= 5 and len(held) <= 4 and min(map(len, held[1:])) > 1):
            return end
    return 0


def american_ssn(candidate: str) -> int:
    area, group, serial = _GROUPS.findall(candidate)
    fit = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return len(candidate) if fit and candidate[3] == candidate[6] else 0


def british_nino(candidate: str) -> int:
    unused = ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
    return 0 if candidate[:2].upper() in unused else len(candidate)


def german_tax_id(candidate: str) -> int:
    """Check by ISO 7064 mod 11,10; of the first ten digits, one only comes twice or thrice."""
    digits = _digits(candidate)
    counts = Counter(digits[:10]).most_common()
    if counts[0][1] not in (2, 3) or counts[1][1] > 1:
        return 0
    product = 10
    for each in digits[:10]:
        rest = (int(each) + product) % 10 or 10
        product = rest * 2 % 11
    return len(candidate) if (11 - product) % 10 == int(digits[10]) else 0


def french_nir(candidate: str) -> int:
    """Check the key; the departments of Corsica count as 19 and 18."""
    plain = candidate.replace(" ", "").upper()
    number = plain[:13].replace("2A", "19").replace("2B", "18")
    if not number.isdigit():
        return 0
    return len(candidate) if 97 - int(number) % 97 == int(plain[13:]) else 0


def spanish_dni(candidate: str) -> int:
    """Check the letter of a citizen's or a foreigner's number."""
    plain = candidate.replace("-", "").upper()
    number = "XYZ".find(plain[0])
    digits = plain[:8] if number < 0 else f"{number}{plain[1:8]}"
    return len(candidate) if "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == plain[8] else 0


def italian_tax_code(candidate: str) -> int:
    """Check the last letter of a codice fiscale."""
    plain = candidate.upper()
    total = 0
    for place, each in enumerate(plain[:15]):
        value = int(each) if each.isdigit() else ord(each) - ord("A")
        total += value if place % 2 else _ODD_PLACES[value]
    return len(candidate) if chr(ord("A") + total % 26) == plain[15] else 0


def brazilian_cpf(candidate: str) -> int:
    """Check both digits."""
    digits = [int(each) for each in _digits(candidate)]
    for length in (9, 10):
        total = sum(each * (length + 1 - place) for place, each in enumerate(digits[:length]))
        if total * 10 % 11 % 10 != digits[length]:
            return 0
    return 0 if len(set(digits)) == 1 else len(candidate)


def _beginnings(candidate: str, least: int, most: int) -> Iterator[tuple[str, int]]:
    """Yield the digits of whole groups and where they end, the longest first."""
    digits = ""
    found = []
    for group in _GROUPS.finditer(candidate):
        digits += group[0]
        if least <= len(digits) <= most:
            found.append((digits, group.end()))
    return reversed(found)


def _digits(candidate: str) -> str:
    return "".join(_GROUPS.findall(candidate))


@lru_cache(maxsize=10_000)
def _issued(beginning: str) -> tuple[int, ...]:
    """Return the numbers of digits that cards of an issuer have, the most first."""
    for issuer, lengths in _ISSUERS:
        if issuer.match(beginning):
            return lengths[::-1]
    return ()


def _luhn(digits: str) -> bool:
    backwards = digits.encode()[::-1]
    plain, doubled = backwards[::2], backwards[1::2].translate(_DOUBLED)
    return (sum(plain) + sum(doubled) - _ZERO * len(digits)) % 10 == 0
