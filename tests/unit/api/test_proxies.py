"""Headers of proxies are believed from trusted ones only."""

from typing import Any

import pytest

from bitinglip.api.proxies import Proxies
from bitinglip.errors import InvalidRequest

TRUSTED = ["10.0.0.0/8", "2001:db8::1"]
XFF, FORWARDED = "x-forwarded-for", "forwarded"


def applied(
    *headers: tuple[str, str], peer: str | None = "10.0.0.1", trusted: list[str] | None = None
) -> dict[str, Any]:
    """Return a scope after the headers of a proxy were applied to it."""
    scope: dict[str, Any] = {
        "type": "http",
        "client": (peer, 5) if peer else None,
        "scheme": "http",
        "root_path": "",
        "headers": [(b"host", b"inner"), *((n.encode(), v.encode()) for n, v in headers)],
    }
    Proxies(TRUSTED if trusted is None else trusted).apply(scope)
    return scope


def client(*values: str, name: str = XFF) -> str:
    found: str = applied(*((name, value) for value in values))["client"][0]
    return found


@pytest.mark.parametrize("peer", ["192.0.2.9", "::1", "127.0.0.1", "2001:db8::2", None])
def test_proxy_that_is_not_trusted_changes_nothing(peer: str | None) -> None:
    told = [(XFF, "198.51.100.7"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil")]
    found = applied(*told, ("x-forwarded-prefix", "/x"), (FORWARDED, "nonsense;"), peer=peer)
    assert found["client"] == ((peer, 5) if peer else None)
    assert (found["scheme"], found["root_path"], found["headers"][0]) == (
        "http",
        "",
        (b"host", b"inner"),
    )
    assert applied((XFF, "198.51.100.7"), trusted=[])["client"][0] == "10.0.0.1"


def test_proxy_s_client_is_the_last_address_that_is_no_proxy_s() -> None:
    assert client("198.51.100.7") == "198.51.100.7"
    assert client("1.2.3.4, 198.51.100.7") == "198.51.100.7"  # the first is the client's own word
    assert client("1.2.3.4, 198.51.100.7, 10.9.9.9") == "198.51.100.7"
    assert client("1.2.3.4", "198.51.100.7", "10.9.9.9") == "198.51.100.7"  # three headers
    assert client("10.1.1.1, 10.2.2.2") == "10.1.1.1"
    assert client("garbage \\, 198.51.100.7") == "198.51.100.7"


def test_proxy_s_client_may_have_a_port_and_be_written_in_any_way() -> None:
    for text in ("198.51.100.7:443", "::ffff:198.51.100.7", "[::ffff:198.51.100.7]:1"):
        assert client(text) == "198.51.100.7"
    for text in ("[2001:DB8:0::7]", "2001:db8::7", "[2001:db8::7]:80"):
        assert client(text) == "2001:db8::7"
    assert client("203.0.113.5, ::ffff:10.1.2.3") == "203.0.113.5"  # a trusted one
    assert client("unknown") == "unknown"


@pytest.mark.parametrize(
    "text", ["", "evil.example", "1.2.3", "fe80::1%eth0", "1.2.3.4:x", "[::1", "1.2.3.4 1.2.3.5"]
)
def test_proxy_header_without_an_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client(text)
    assert refused.value.param == "X-Forwarded-For"


def test_proxy_header_forwarded_is_read_like_x_forwarded_for() -> None:
    for text in (
        "for=198.51.100.7",
        'for="198.51.100.7:80";proto=https;by=10.0.0.1',
        "For=1.2.3.4, for=198.51.100.7;host=outer, for=10.1.1.1",
    ):
        assert client(text, name=FORWARDED) == "198.51.100.7"
    assert client('for="[2001:db8::7]:80"', name=FORWARDED) == "2001:db8::7"
    assert client("for=_hidden", name=FORWARDED) == "_hidden"
    found = applied((FORWARDED, "for=1.2.3.4;proto=https;host=outer"))
    assert (found["scheme"], found["headers"][-1]) == ("https", (b"host", b"outer"))
    for wrong in ("198.51.100.7", "for=1.2.3.4;for=1.2.3.5", "for=1.2.3.4;;", "for"):
        with pytest.raises(InvalidRequest):
            client(wrong, name=FORWARDED)


def test_proxy_that_passes_on_a_header_which_tells_another_client_is_not_followed() -> None:
    same = applied((XFF, "198.51.100.7"), (FORWARDED, "for=198.51.100.7"))
    assert same["client"][0] == "198.51.100.7"
    for passed_on in ([(XFF, "1.2.3.4"), (FORWARDED, "for=9.9.9.9")],):
        with pytest.raises(InvalidRequest):
            applied(*passed_on)


def test_proxy_tells_scheme_and_prefix() -> None:
    assert applied(("x-forwarded-proto", "https"))["scheme"] == "https"
    assert applied(("x-forwarded-proto", "ftp, HTTPS"))["scheme"] == "https"
    assert applied(("x-forwarded-prefix", "/ai/v2/"))["root_path"] == "/ai/v2"
    assert applied(("x-forwarded-prefix", "/"))["root_path"] == ""
    for name, wrong in [
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-prefix", "//evil.example"),
        ("x-forwarded-prefix", "/a/../b"),
        ("x-forwarded-prefix", "/a?b"),
        ("x-forwarded-prefix", "ai"),
        ("x-forwarded-prefix", "/" + "a" * 300),
    ]:
        with pytest.raises(InvalidRequest):
            applied((name, wrong))
