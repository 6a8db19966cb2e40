"""Checks candidates that are not numbers: which part is meant, or 0 if none is."""

import ipaddress
import math
import re
from collections import Counter

SHORT_LOCAL = 40  #: characters before the @ of which the whole domain is looked at
SHORT_DOMAIN = 22  #: characters of a domain that are looked at; what is longer counts as one
_ASSIGNED = re.compile(r"[^:=]*(?:=>|[:=])\s*[\"']?")
_RANDOM = 3.0  #: bits for each character


def email(candidate: str) -> int:
    """Take a domain with a dot and a top level of letters, as far as it is looked at."""
    local, _, domain = candidate.partition("@")
    if len(domain) == SHORT_DOMAIN or len(local) > SHORT_LOCAL:
        return len(candidate)
    domain = domain.rstrip(".-")
    host, _, top = domain.rpartition(".")
    good = host and host.strip(".-") == host and ".." not in host and len(top) > 1
    return len(local) + 1 + len(domain) if good and top.isalpha() else 0


def ipv4(candidate: str) -> int:
    """Take four numbers up to 255; a fifth means that it is a version."""
    address = candidate.rstrip(".")
    parts = address.split(".")
    fit = len(parts) == 4 and all(int(each) < 256 and str(int(each)) == each for each in parts)
    return len(address) if fit else 0


def ipv6(candidate: str) -> int:
    address = candidate.rstrip(".")
    if address.endswith(":") and not address.endswith("::"):
        address = address[:-1]
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return 0
    return len(address) if address.strip(":") else 0


def mixed(candidate: str) -> int:
    """Take what holds letters and digits: names of programs hold letters only."""
    return len(candidate) if any(map(str.isdigit, candidate)) else 0


def private_key(candidate: str) -> int:
    return len(candidate) if "PRIVATE KEY" in candidate else 0


def random_value(candidate: str) -> tuple[int, int]:
    """Take the value of an assignment if it looks random: letters and digits that repeat little."""
    assigned = _ASSIGNED.match(candidate)
    assert assigned is not None
    start, end = assigned.end(), len(candidate)
    value = candidate[start:]
    shares = [count / len(value) for count in Counter(value).values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    both = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return (start, end) if both and entropy >= _RANDOM else (0, 0)
