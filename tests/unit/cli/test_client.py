"""The client: streams, errors as one line, paths."""

import json

import pytest

from cli.client import failure_line, parse_events, path_of
from cli.errors import Failure


def events(text: str | bytes, step: int = 10_000) -> list[tuple[str, dict[str, object]]]:
    data = text.encode() if isinstance(text, str) else text
    return list(parse_events(data[at : at + step] for at in range(0, len(data), step)))


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_come_whole_however_the_bytes_are_cut(step: int, end: str) -> None:
    text = ': keep-alive\n\nevent: queued\ndata: {}\n\nevent: token\ndata: {"text": "é🚀"}\n\n'
    assert events(text.replace("\n", end), step) == [("queued", {}), ("token", {"text": "é🚀"})]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
def test_events_end_lines_by_line_feeds_only(inside: str) -> None:
    """Python's splitlines() takes these for line ends; JSON may hold them as they are."""
    data = json.dumps({"text": f"a{inside}b"}, ensure_ascii=ord(inside) < 0x20)
    assert events(f"event: token\ndata: {data}\n\n") == [("token", {"text": f"a{inside}b"})]


def test_events_that_are_no_json_are_one_clear_error() -> None:
    with pytest.raises(Failure, match="cannot be read"):
        events("event: token\ndata: {\n\n")
    assert events("event: token\ndata: [1]\n\n") == [("token", {})]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ({"message": "No."}, "No."),
        ({"code": "TIMEOUT"}, "TIMEOUT"),
        ({}, "the server gave no reason"),
        (
            {
                "code": "INVALID_MODEL",
                "message": "It is not available.",
                "details": {"model": "x", "available_models": ["a", "b"]},
            },
            "It is not available. Available: a, b.",
        ),
        (
            {"code": "INVALID_MODEL", "message": "No.", "details": {"available_models": []}},
            "No. The store is empty: bitinglip models pull REPO.",
        ),
        ({"code": "INTERNAL_ERROR", "message": "Oh.", "request_id": "req-1"}, "Oh. (req-1)"),
    ],
)
def test_error_is_one_line_that_says_what_to_do(error: dict[str, object], line: str) -> None:
    assert failure_line(error) == line


def test_key_that_is_refused_says_where_keys_come_from() -> None:
    error = {"code": "INVALID_API_KEY", "message": "x"}
    assert "BITINGLIP_API_KEY" in failure_line(error, has_key=False)
    assert "does not accept" in failure_line(error)
    assert failure_line({"message": "Slow down."}, "7") == "Slow down. Try again in 7 s."
    told = "Too many; try again in 4.8 seconds."
    assert failure_line({"message": told}, "5") == told


def test_names_stay_in_their_place_of_the_path() -> None:
    assert path_of("models", "org/name", "load") == "/api/v1/models/org/name/load"
    assert path_of("keys", "a?b#c d%2F") == "/api/v1/keys/a%3Fb%23c%20d%252F"
    for name in ("", ".", "..", "../keys", "a//b", "/a", "a/"):
        with pytest.raises(Failure, match="not a valid name"):
            path_of("models", name)
