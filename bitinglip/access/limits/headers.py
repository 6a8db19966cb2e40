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
    tightest = shown[0]
    least = readings[tightest]
    values: list[int] = []
    for index in shown:
        reading = readings[index]
        remaining, next_unit, _ = reading
        if remaining < least[0]:
            tightest, least = index, reading
        values += (remaining, -(-next_unit // SECOND))
    shape, quotas = _of_policy(policy, tuple(refusing))
    return (
        (b"ratelimit-policy", policy.header),
        (b"ratelimit", shape % tuple(values)),
        (b"x-ratelimit-limit-requests", quotas[tightest]),
        (b"x-ratelimit-remaining-requests", b"%d" % least[0]),
        (b"x-ratelimit-reset-requests", duration(least[2])),
    )


@lru_cache(maxsize=1024)
def _of_policy(policy: Policy, shown: tuple[int, ...]) -> tuple[bytes, Sequence[bytes]]:
    """Return RateLimit for these rates, or for all, without its numbers; and the quota of each."""
    rates = [policy.rates[index] for index in shown] or policy.rates
    items = [b'"%b";r=%%d;t=%%d' % each.name.encode().replace(b"%", b"%%") for each in rates]
    return b", ".join(items), [b"%d" % each.rate.quota for each in policy.rates]


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
