"""Globs of models and ranges of addresses: what they cover, and which lie within others."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access.narrowing import (
    address_allowed,
    model_allowed,
    models_within,
    parse_models,
    parse_ranges,
    ranges_within,
)
from bitinglip.errors import InvalidRequest

_TEXT = st.text(alphabet="ab/", max_size=8)
_GLOB = st.text(alphabet="ab/*?", min_size=1, max_size=8)


def _expression(glob: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(each, re.escape(each)) for each in glob))


@given(_GLOB, _TEXT)
def test_glob_covers_what_its_expression_does(glob: str, name: str) -> None:
    assert model_allowed((glob,), name) == bool(_expression(glob).fullmatch(name))


@given(_GLOB, _GLOB, _TEXT)
def test_glob_within_another_covers_nothing_more(inner: str, outer: str, name: str) -> None:
    if models_within((inner,), (outer,)) and model_allowed((inner,), name):
        assert model_allowed((outer,), name)


@pytest.mark.parametrize(
    ("inner", "outer", "within"),
    [
        ("demo", "*", True),
        ("org/a*", "org/*", True),
        ("org/*", "org/a*", False),
        ("*", "?*", False),
        ("a*b", "a?b", False),
        ("a?b", "a*b", True),
        ("DEMO", "demo", False),
    ],
)
def test_glob_within_another(inner: str, outer: str, within: bool) -> None:
    assert models_within((inner,), (outer,)) is within


def test_glob_of_many_stars_is_matched_in_bounded_time() -> None:
    began = time.process_time()
    assert not model_allowed(("*a" * 60 + "b",), "a" * 256)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("glob", ["", "a b", "[ab]", "x" * 129, "\u0430", "a\n", "{a,b}"])
def test_glob_that_is_invalid_is_refused(glob: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_models(["demo", glob])
    assert caught.value.param == "models[1]"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", False),
        ("2001:db8::1", True),
        ("2001:db8::1%eth0", True),
        ("2001:db9::1", False),
        ("192.168.0.1", True),
        ("192.168.0.2", False),
        ("", False),
        ("010.1.2.3", False),
        ("localhost", False),
        ("167838211", False),
    ],
)
def test_range_holds_addresses(address: str, allowed: bool) -> None:
    ranges = parse_ranges(["10.0.0.0/8", "2001:db8::/32", "::ffff:192.168.0.1"])
    assert address_allowed(ranges, address) is allowed


@pytest.mark.parametrize(
    "text", ["10.0.0.1/8", "10.0.0.0/33", "a.example", "", "fe80::1%eth0", "10.0.0.0/8 ", "1"]
)
def test_range_that_is_invalid_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_ranges([text])
    assert caught.value.param == "ip_ranges[0]"


def test_range_within_another() -> None:
    held = parse_ranges(["10.0.0.0/8", "2001:db8::/32"])
    for inside in (["10.1.0.0/16"], ["::ffff:10.1.0.0/112"], ["10.0.0.1", "2001:db8::1"]):
        assert ranges_within(parse_ranges(inside), held)
        assert ranges_within(parse_ranges(inside), None)
    for outside in (["0.0.0.0/0"], ["10.0.0.1", "11.0.0.1"], ["::/0"]):
        assert not ranges_within(parse_ranges(outside), held)
    assert not ranges_within(None, held)


def test_narrowing_lists_that_are_too_long_or_empty_are_refused() -> None:
    for many in ([], [f"m{number}" for number in range(65)]):
        with pytest.raises(InvalidRequest):
            parse_models(many)
    with pytest.raises(InvalidRequest):
        parse_ranges([])
