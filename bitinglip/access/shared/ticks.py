"""Writes amounts of time so that Redis adds and compares them exactly. Pure.

A script's numbers are doubles, exact up to 2^53, which ticks (see ``limits.gcra``) pass. So it has
two numbers of each: whole microseconds, and the part of the next one in units of 1/quota. Both stay
below 2^53, and nothing is ever rounded.
"""

from functools import lru_cache

from bitinglip.access.limits.gcra import Rate, unit_ticks

#: microseconds, 71 years: what a burst may be worth at most; with the time of today below 2^53
_LONGEST = 1 << 51
#: the largest quota of which two parts add up below 2^53
_LARGEST = 1 << 52


def parts(ticks: int, rate: Rate) -> tuple[int, int]:
    """Return ticks as whole microseconds and a part. Raises ValueError for a quota too large."""
    if rate.quota > _LARGEST:
        raise ValueError("such a rate is no limit")
    whole, part = divmod(ticks, rate.quota)
    return (whole, part) if whole < _LONGEST else (_LONGEST, 0)


@lru_cache(maxsize=4096)
def asked(rate: Rate, cost: int, share: int) -> tuple[int, int, int, int, int]:
    """Return the quota, what ``cost`` units take, and the most that may be taken at once."""
    if cost > rate.burst:
        raise ValueError("more units than the burst holds never pass")
    taken = cost * unit_ticks(rate, share)
    most = max(rate.burst * rate.window, taken)
    return rate.quota, *parts(taken, rate), *parts(most, rate)


def given(rate: Rate, cost: int, share: int) -> tuple[int, int, int, int]:
    """Return the quota, 1 or -1, and what ``cost`` units are; fewer than 0 are taken, too."""
    sign = 1 if cost >= 0 else -1
    return rate.quota, sign, *parts(abs(cost) * unit_ticks(rate, share), rate)


def ticks(whole: int, part: int, rate: Rate) -> int:
    """Return what ``parts`` was made of."""
    return whole * rate.quota + part
