"""Addresses and headers of requests to the hub."""

import io
import urllib.request
from http.client import HTTPMessage

import pytest

from model_store.errors import DownloadError
from model_store.hub.connections import _Redirects, _without_credentials


def redirected(source: str, target: str) -> urllib.request.Request:
    asked = urllib.request.Request(source, headers={"Authorization": "Bearer x", "Range": "y"})
    made = _Redirects().redirect_request(asked, io.BytesIO(), 302, "", HTTPMessage(), target)
    assert made is not None
    assert made.full_url == target
    return made


@pytest.mark.parametrize(
    "target",
    [
        "https://cdn.example/x",
        "https://hub.example:8443/x",
        "https://evil.hub.example/x",
        "https://hub.example@evil.example/x",
    ],
)
def test_redirect_to_another_host_takes_no_token(target: str) -> None:
    made = redirected("https://hub.example/x", target)
    assert not made.has_header("Authorization")
    assert made.has_header("Range")


def test_redirect_within_a_host_keeps_the_token() -> None:
    made = redirected("https://hub.example/x", "https://HUB.example/y")
    assert made.get_header("Authorization") == "Bearer x"


@pytest.mark.parametrize("target", ["http://hub.example/x", "ftp://a/x", "file:///etc/passwd"])
def test_redirect_away_from_encryption_is_refused(target: str) -> None:
    with pytest.raises(DownloadError, match="which is not followed"):
        redirected("https://hub.example/x", target)


def test_address_with_a_password_asks_with_it_and_without_it_in_the_address() -> None:
    url, headers = _without_credentials("http://me:p%40ss@mirror.example:8080/x?y=1")
    assert url == "http://mirror.example:8080/x?y=1"
    assert headers == {"Authorization": "Basic bWU6cEBzcw=="}
    assert _without_credentials("http://mirror.example/x") == ("http://mirror.example/x", {})
