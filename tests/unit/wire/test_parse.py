"""JSON bodies: what is no JSON, and the bounds of depth, elements and members."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip import errors
from bitinglip.wire.admin.keys import CreateKeyRequest
from bitinglip.wire.parse import (
    LARGE,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_MEMBERS,
    check_shape,
    is_large,
    parse,
)
from bitinglip.wire.text.native import TextGenerationRequest

NATIVE = {"model": "m", "prompt": "p"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b"\xff",
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "prompt": "p", "temperature": NaN}',
        b'{"model": "m", "prompt": "p", "temperature": Infinity}',
        b'{"model": "m", "prompt": "p", "temperature": 1e400}',
        b'{"model": "m", "prompt": "p", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_json_that_is_malformed_is_a_400(raw: bytes) -> None:
    with pytest.raises(errors.InvalidRequest):
        parse(TextGenerationRequest, raw)


def test_json_depth_has_a_bound() -> None:
    check_shape(b"[" * 64 + b"]" * 64)
    check_shape(b'{"a":[' * 32 + b"]}" * 32)
    check_shape(b"[[],{}]" * 1000)
    check_shape(b'"' + b"[" * 1000 + b'"')
    check_shape(b'["\\"' + b"[" * 1000 + b'"]')
    for deep in (b"[" * 65 + b"]" * 65, b'{"a":[' * 33 + b"]}" * 33, b"[1,[2]," * 65 + b"]" * 65):
        with pytest.raises(errors.InvalidRequest):
            check_shape(deep)


def _padded(elements: int) -> bytes:
    """Return a body of so many elements and more than a megabyte."""
    return b'{"x":"' + b'\\"[,{' * 200_000 + b'","y":[' + b"1," * (elements - 3) + b"1]}"


def test_json_elements_have_a_bound() -> None:
    check_shape(_padded(MAX_ELEMENTS))
    check_shape(b"[" + b"1," * (MAX_ELEMENTS - 1) + b"1]")
    many = b"the body has more than 100000 elements"
    for raw in (
        _padded(MAX_ELEMENTS + 1),
        b"[" + b"1," * MAX_ELEMENTS + b"1]",
        b"[" + b"[]," * MAX_ELEMENTS + b"1]",
        b'{"model": "m", "prompt": ["x"' + (b", " + b"[" * 60 + b"]" * 60) * 80_000 + b"]}",
    ):
        with pytest.raises(errors.InvalidRequest) as refusal:
            check_shape(raw)
        assert refusal.value.message.encode().lower().startswith(many)


@pytest.mark.parametrize("size", [0, 300_000])
@given(text=st.text(st.sampled_from('"\\[]{},:a')))
def test_json_shape_of_any_text_is_what_the_parser_says(size: int, text: str) -> None:
    """Check that strings do not count; long bodies are read in another way."""
    deep = "[" * MAX_DEPTH + json.dumps(text + "a" * size) + "]" * MAX_DEPTH
    check_shape(deep.encode())
    with pytest.raises(errors.InvalidRequest):
        check_shape(f"[{deep}]".encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"[]," * 65 + b'"' + b'\\"' * 2_000_000,
        b"[" * 65 + b'"' + b"\\n" * 2_000_000 + b'"' + b"]" * 4_000_000,
        b"[]," * 65 + b'"",' * 2_000_000,
        b"[]," * 65 + b'""' * 2_000_000,
        b"[]," * 65 + b'"' * 4_000_001,
        b"\\" * 6_000_000 + b"[" * 65,
    ],
)
def test_json_shape_of_hostile_text_is_found_in_linear_time(raw: bytes) -> None:
    with contextlib.suppress(errors.InvalidRequest):
        check_shape(raw)


def test_json_members_have_a_bound() -> None:
    """A member may be wrong, and the library makes all errors before it tells of any."""

    def body(count: int) -> bytes:
        return json.dumps({**NATIVE, **{f"k{i}": ":" for i in range(count)}}).encode()

    most = MAX_MEMBERS - len(NATIVE)
    check_shape(body(most))
    check_shape(body(most).ljust(LARGE + 1))
    nested = b'{"prompt":{' + b",".join(b'"%d":1' % i for i in range(MAX_MEMBERS)) + b"}}"
    for raw in (body(most + 1), body(most + 1).ljust(LARGE + 1), nested):
        with pytest.raises(errors.InvalidRequest, match="more than 32768 members"):
            check_shape(raw)


def test_body_of_many_values_is_checked_beside_the_event_loop() -> None:
    assert not is_large(json.dumps({**NATIVE, "prompt": "word " * 50_000}).encode())
    assert is_large(b"[" + b"1," * 5000 + b"1]")
    assert is_large(b"[" + b"[]" * 5000 + b"]")
    assert is_large(json.dumps({f"k{i}": 1 for i in range(3000)}).encode())
    assert is_large(b" " * (LARGE + 1))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (
            {"quotas": {"daily": {"token": 1}}},
            "'quotas.daily.token' is unknown or not supported; did you mean 'tokens'?",
        ),
        (
            {"quotas": {"dayly": {}}},
            "'quotas.dayly' is unknown or not supported; did you mean 'daily'?",
        ),
        ({"zzz": 1}, "'zzz' is unknown or not supported."),
    ],
)
def test_unknown_field_is_told_with_the_nearest_known_one(
    sent: dict[str, object], message: str
) -> None:
    with pytest.raises(errors.UnsupportedParameter) as told:
        parse(CreateKeyRequest, json.dumps({"name": "n", **sent}).encode())
    assert str(told.value) == message
