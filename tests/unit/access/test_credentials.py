"""The form of keys, scopes and expiries."""

import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.access import credentials
from bitinglip.access.expiry import parse_expiry
from bitinglip.access.scopes import DEFAULT, Scope, parse_scopes
from bitinglip.errors import InvalidRequest

KEY = "blk_live_0123456789Ab_ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ4e2mHB"


def test_key_that_is_made_parses_to_its_id() -> None:
    for _ in range(200):
        key = credentials.make()
        assert credentials.parse(key.text) == key.id
        assert len(key.text) == credentials.LENGTH


def test_key_format_stays() -> None:
    """Keys that people hold must parse for ever."""
    assert credentials.parse(KEY) == "0123456789Ab"


def test_key_is_unique() -> None:
    assert len({credentials.make().text[22:] for _ in range(1000)}) == 1000


@given(st.integers(0, credentials.LENGTH - 1), st.sampled_from(string.printable + "é٣\x00"))
def test_key_with_a_wrong_character_is_refused(place: int, character: str) -> None:
    text = KEY[:place] + character + KEY[place + 1 :]
    assert text == KEY or credentials.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY[:-1],
        KEY + "0",
        KEY + "\n",
        "\n" + KEY,
        " " + KEY,
        KEY.upper(),
        "x" * 10_000_000,
        "' OR 1=1 --",
        "\ud800" * credentials.LENGTH,
    ],
)
def test_key_of_another_form_is_refused(text: str) -> None:
    assert credentials.parse(text) is None


def test_digest_depends_on_pepper_and_on_the_whole_key() -> None:
    digests = {
        credentials.digest(b"a", KEY),
        credentials.digest(b"b", KEY),
        credentials.digest(b"a", KEY[:-1] + ("0" if KEY[-1] != "0" else "1")),
    }
    assert len(digests) == 3


def test_scope_list_is_parsed() -> None:
    assert frozenset(Scope) - DEFAULT == {Scope.ADMIN, Scope.CLUSTER_WRITE}
    assert parse_scopes(["inference:text", "models:read"]) == {Scope.TEXT, Scope.MODELS_READ}
    for wrong in (["inference:txt"], [], ["admin", ""]):
        with pytest.raises(InvalidRequest, match="inference:text") as caught:
            parse_scopes(wrong)
        assert caught.value.param == "scopes"


@pytest.mark.parametrize(
    ("text", "span"),
    [("30d", timedelta(days=30)), ("12h", timedelta(hours=12)), ("2w", timedelta(weeks=2))],
)
def test_expiry_may_be_a_span(text: str, span: timedelta) -> None:
    before = datetime.now(UTC)
    assert before + span <= parse_expiry(text) <= datetime.now(UTC) + span


def test_expiry_may_be_a_time() -> None:
    noon = datetime(2130, 1, 31, 12, tzinfo=UTC)
    for text in ("2130-01-31T12:00:00Z", "2130-01-31T12:00:00", "2130-01-31T13:00:00+01:00"):
        assert parse_expiry(text) == noon


@pytest.mark.parametrize(
    "text",
    ["", "soon", "0d", "-1d", "30", "٣d", "999999999w", "2001-01-01", "9999-12-31T23:59:59-10:00"],
)
def test_expiry_that_is_invalid_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_expiry(text)
    assert caught.value.param == "expires"
