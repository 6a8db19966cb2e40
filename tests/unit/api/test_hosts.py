"""Host and Origin headers: what is read from them, and what is refused."""

import pytest

from bitinglip.api.hosts import Origins, is_loopback, normal_name, parse_host


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8080", "localhost"),
        ("my_box.lan:1", "my_box.lan"),
        ("127.0.0.1:65535", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:80", "::1"),
        ("[0:0:0:0:0:0:0:1]:80", "::1"),
        ("[FD00::1]", "fd00::1"),
    ],
)
def test_host_header_gives_its_name(header: str, name: str) -> None:
    assert parse_host(header) == name


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[::1]evil",
        "[::1]:80evil",
        "[::1]evil:80",
        "localhost:evil.com",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:-1",
        "localhost:80:80",
        "localhost:٣",
        "::1",
        "[]",
        "[localhost]",
        "[::1%25lo]",
        "[::1",
        "user@localhost",
        "localhost/path",
        "localhost ",
        " localhost",
        "localhost\n",
        "x" * 254,
    ],
)
def test_host_header_that_is_malformed_gives_none(header: str) -> None:
    assert parse_host(header) is None


def test_host_names_of_the_settings_are_normalised() -> None:
    names = [normal_name(each) for each in ("Box.LAN", "[::1]", "[0:0::1]", "10.0.0.7")]
    assert names == ["box.lan", "::1", "::1", "10.0.0.7"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_a_name(name: str, expected: bool) -> None:
    assert is_loopback(name) is expected


@pytest.mark.parametrize(
    ("origin", "accepted"),
    [
        (None, True),
        ("http://box.lan:8080", True),
        ("https://BOX.lan:8080", True),
        ("https://app.example", True),
        ("https://evil.example", False),
        ("http://box.lan", False),
        ("http://box.lan:8080.evil.example", False),
        ("http://user@box.lan:8080", False),
        ("http://[::1", False),
        ("null", False),
        ("", False),
        ("chrome-extension://box.lan:8080", False),
    ],
)
def test_origin_is_own_or_in_the_settings(origin: str | None, accepted: bool) -> None:
    origins = Origins(["https://app.example"])
    assert origins.accept(origin, "box.lan:8080", other_site=False) is accepted


def test_origin_of_another_site_must_be_in_the_settings() -> None:
    origins = Origins(["https://app.example"])
    assert origins.accept("https://app.example", "box.lan", other_site=True)
    assert not origins.accept("http://box.lan", "box.lan", other_site=True)
    assert not origins.accept(None, "box.lan", other_site=True)
    assert Origins(["*"]).accept("https://evil.example", "box.lan", other_site=True)
