"""The headers of the W3C's trace context."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.tracing.traceparent import Parent, parse, traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_traceparent_is_read() -> None:
    found = parse(f"00-{TRACE}-{SPAN}-01".encode(), b"a=1")
    assert found == Parent(int(TRACE, 16), int(SPAN, 16), sampled=True, state="a=1")


def test_traceparent_of_a_later_version_may_say_more() -> None:
    assert parse(f"01-{TRACE}-{SPAN}-00-more".encode(), None) is not None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_traceparent_that_is_not_valid_names_no_parent(header: str) -> None:
    assert parse(header.encode(), None) is None


@settings(max_examples=25)
@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
def test_traceparent_that_is_written_is_read_again(trace_id: int, span_id: int) -> None:
    found = parse(traceparent(trace_id, span_id).encode(), None)
    assert found == Parent(trace_id, span_id, sampled=True, state="")
