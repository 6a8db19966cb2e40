"""Host and Origin headers: what is read from them, and what is refused."""

from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import ValidationError

from bitinglip.api.hosts import Hosts, Origins, is_loopback, normal_name, parse_host
from bitinglip.settings import Server


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


NOT_OURS = ("evil.example", "evil-box", "box.evil.example", "10.0.0.9", "0.0.0.0", "::")


def accepted(names: Iterable[str], local: str = "10.0.0.7", **server: Any) -> set[str]:
    hosts = Hosts(Server.model_validate(server))
    return {name for name in names if hosts.accept(name, local)}


def test_host_names_are_loopback_and_the_address_that_was_called() -> None:
    ours = {"localhost", "127.0.0.1", "::1", "10.0.0.7"}
    assert accepted([*ours, *NOT_OURS]) == ours
    assert accepted(["0.0.0.0", "::"], local="0.0.0.0", host="0.0.0.0") == set()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("name", ["box", "box.lan.example"])
def test_host_names_of_the_machine_are_served_when_bound_to_all_addresses(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr("socket.gethostname", name.upper)
    ours = {name, "box", "box.local", "localhost"}
    assert accepted([*ours, *NOT_OURS], host=host) == ours
    assert accepted([*ours, *NOT_OURS], host="10.1.1.1") == {"localhost"}
    assert accepted(["10.1.1.1"], host="10.1.1.1") == {"10.1.1.1"}


def test_host_names_of_settings_are_served() -> None:
    given = {"host.docker.internal", "box.lan", "2001:db8::1"}
    hosts = ["Host.Docker.Internal", "box.lan", "[2001:DB8:0::1]"]
    assert accepted([*given, *NOT_OURS], allowed_hosts=hosts) == given
    assert accepted(["ai.example", *NOT_OURS], public_url="https://AI.example:8443/x") == {
        "ai.example"
    }


def test_host_domain_means_itself_and_all_below_it() -> None:
    below = {"lab.example", "a.lab.example", "b.a.lab.example"}
    others = ["evillab.example", "lab.example.evil", "example", ".lab.example.evil"]
    assert accepted([*below, *others], allowed_hosts=[".Lab.example"]) == below


def test_host_star_means_every_name() -> None:
    assert accepted(NOT_OURS, allowed_hosts=["*"]) == set(NOT_OURS)


@pytest.mark.parametrize(
    "wrong",
    ["http://box", "box:8080", "box/", "*.lab.example", "a b", "", ".", "..", "user@box", "[box]"],
)
def test_host_setting_that_would_match_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="no name such as"):
        Server(allowed_hosts=[wrong])
