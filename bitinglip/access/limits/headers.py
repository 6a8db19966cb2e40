"""Writes the headers of limits, in both families, from one reading: bytes, made once for a
response."""

import math
from collections.abc import Sequence
from functools import lru_cache

from bitinglip.access.limits.gcra import SECOND, Reading
from bitinglip.access.limits.policy import CONCURRENT, Policy

Headers = tuple[tuple[bytes, bytes], ...]
NAMES = (
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


def limit_headers(
    policy: Policy, readings: Sequence[Reading], refusing: Sequence[int] = ()
) -> Headers:
    """Return the headers of a response; ``refusing`` are the rates that refused the request.

    A refusal shows these rates only: clients hold ``t`` against Retry-After. The second family
    knows one limit, so it shows the one with the least left.
    """
    if not readings:
        return ((b"ratelimit-policy", policy.header),) if policy.header else ()
    shown = refusing or range(len(readings))
    tightest, items = shown[0], []
    for index in shown:
        remaining, next_unit, _ = readings[index]
        if remaining < readings[tightest].remaining:
            tightest = index
        seconds = -(-next_unit // SECOND)
        items.append(b"%b%d;t=%d" % (_item(policy.rates[index].name), remaining, seconds))
    least = readings[tightest]
    return (
        (b"ratelimit-policy", policy.header),
        (b"ratelimit", b", ".join(items)),
        (b"x-ratelimit-limit-requests", b"%d" % policy.rates[tightest].rate.quota),
        (b"x-ratelimit-remaining-requests", b"%d" % least.remaining),
        (b"x-ratelimit-reset-requests", duration(least.reset)),
    )


@lru_cache(maxsize=64)
def _item(name: str) -> bytes:
    """Return how an item of RateLimit begins."""
    return b'"%b";r=' % name.encode()


def full_headers(policy: Policy, readings: Sequence[Reading]) -> Headers:
    """Return the headers of a request that found no place; it has taken nothing of the rates."""
    others = [each for each in limit_headers(policy, readings) if each[0] != b"ratelimit"]
    return (*others, (b"ratelimit", b'"%b";r=0' % CONCURRENT.encode()))


def quota_headers(others: Headers, quota: str, limit: float, wait: float) -> Headers:
    """Return the headers of a request that a quota refuses, which is back in ``wait`` seconds.

    Of the others only the policies stay; its own says in which unit it is, and no window: a month
    has no fixed length.
    """
    name, unit = quota.encode(), quota.rpartition(".")[2].replace("_", "-").encode()
    policies = [value for key, value in others if key == b"ratelimit-policy" and value]
    policies.append(b'"%b";q=%d;qu="%b"' % (name, limit, unit))
    return (
        (b"ratelimit-policy", b", ".join(policies)),
        (b"ratelimit", b'"%b";r=0;t=%d' % (name, math.ceil(wait))),
    )


def duration(microseconds: int) -> bytes:
    """Return a duration as Go writes it, rounded up: ``120ms``, ``6s``, ``6m0s``, ``1h0m0s``."""
    if microseconds < SECOND:
        return b"%dms" % -(-microseconds // 1000)
    seconds = -(-microseconds // SECOND)
    if seconds < 60:
        return b"%ds" % seconds
    if seconds < 3600:
        return b"%dm%ds" % divmod(seconds, 60)
    minutes, seconds = divmod(seconds, 60)
    return b"%dh%dm%ds" % (*divmod(minutes, 60), seconds)
