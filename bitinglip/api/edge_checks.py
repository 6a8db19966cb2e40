"""Refuses malformed and foreign requests before any body is read."""

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope

from bitinglip.access.narrowing import address_allowed
from bitinglip.api.audited import refuse_login
from bitinglip.api.auth import is_local
from bitinglip.api.hosts import Hosts, Origins, foreign_host, foreign_page, parse_host
from bitinglip.api.request_context import RequestContext, context_of, route_path
from bitinglip.errors import (
    InvalidRequest,
    IpNotAllowed,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
    answer,
)
from bitinglip.settings import Security, Server
from bitinglip.telemetry.redaction import KEY_SHAPE, TOKEN_SHAPE

Headers = list[tuple[bytes, bytes]]
Fields = Mapping[bytes, bytes]  #: the last header of each name
_CREDENTIAL_NAMES = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token"})
_MOST_ACCEPTED = 64  #: Host headers that need no other look
_LONGEST_QUERY = 8192  #: bytes
_MOST_PARAMETERS = 100  #: of a query; routes know a few, and each takes time before any key
_SECRET = re.compile(f"{KEY_SHAPE}|{TOKEN_SHAPE}", re.ASCII)
_JSON = b"application/json"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  #: they change nothing
_FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})


class EdgeChecks:
    """Refuses malformed and foreign requests before any body is read."""

    def __init__(self, server: Server, security: Security) -> None:
        self._max_body = server.max_body_bytes
        self._max_upload = server.max_upload_bytes
        self._hosts = Hosts(server)
        #: Host headers that were accepted, each with the address that was called
        self._accepted: set[tuple[bytes | None, str | None]] = set()
        self._origins = Origins(server.cors_origins)
        self._allowed = tuple(security.ip_allow) or None
        self._denied = tuple(security.ip_deny)

    def check(self, scope: Scope, receive: Receive, context: RequestContext) -> Receive:
        """Return how to receive the body. Raises what is wrong with the request."""
        if context.services is None and route_path(scope) != "/livez":
            raise Unavailable("The server is starting.")
        headers: Headers = scope["headers"]
        fields = context.fields
        if len(fields) < len(headers):
            _check_single(headers)
        if self._allowed is not None or self._denied:
            self._check_address(scope)
        self._check_host(scope, fields)
        if b"origin" in fields or b"sec-fetch-site" in fields:
            self._check_origin(scope, fields)
        if scope["query_string"]:
            _check_query(scope["query_string"])
        limit = self._limit(fields)
        if _check_body(fields, limit) is None:
            return _counted(receive, limit)
        return receive

    def _check_address(self, scope: Scope) -> None:
        """Refuse addresses that the settings keep out; the Unix socket has none."""
        if is_local(scope):
            return
        address = scope["client"][0] if scope["client"] else ""
        if not address_allowed(self._allowed, address) or address_allowed(self._denied, address):
            error = IpNotAllowed(
                "The server may not be used from this address.", details={"address": address}
            )
            if context_of(scope).services is not None:
                refuse_login(HTTPConnection(scope), None, answer(error).code)
            raise error

    def _check_host(self, scope: Scope, fields: Fields) -> None:
        """Refuse names that are not ours, as a page under DNS rebinding would send.

        Clients of HTTP/1.0 need not send a name; health checks of proxies do not.
        """
        value = fields.get(b"host")
        if value is None and scope.get("http_version") == "1.0":
            return
        server = scope.get("server")
        told = value, server[0] if server else None
        if told in self._accepted:
            return
        name = None if value is None else parse_host(value.decode("latin-1"))
        if name is None or not self._hosts.accept(name, told[1]):
            raise foreign_host(name)
        if len(self._accepted) < _MOST_ACCEPTED:
            self._accepted.add(told)

    def _check_origin(self, scope: Scope, headers: Fields) -> None:
        """Refuse pages of other sites: WebSockets, and requests that change something.

        Browsers send these without asking first (CORS asks only about some requests, and never
        about WebSockets), and where keys are off nothing else tells a page from its user.
        """
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        host = headers.get(b"host", b"").decode("latin-1")
        text = None if origin is None else origin.decode("latin-1")
        if not self._origins.accept(text, host, other_site=site in _FOREIGN_SITES):
            raise foreign_page()

    def _limit(self, headers: Fields) -> int:
        """Return the bytes that the body may have; forms bring files."""
        kind = headers.get(b"content-type", _JSON)
        form = kind != _JSON and kind.lower().startswith(b"multipart/form-data")
        return self._max_upload if form else self._max_body


def _check_single(headers: Headers) -> None:
    """Refuse two hosts, and two types of one body: one would be checked, and the other used."""
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        raise foreign_host(None)
    if names.count(b"content-type") > 1:
        raise InvalidRequest("The request has two Content-Type headers.", param="Content-Type")


def _check_body(headers: Fields, limit: int) -> int | None:
    """Check the declared length and return it; None if the body comes in chunks.

    Raises InvalidRequest, PayloadTooLarge or UnsupportedMediaType.
    """
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise UnsupportedMediaType(
            "Send the body without a Content-Encoding.", details={"encodings": ["identity"]}
        )
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        if length is not None:
            raise InvalidRequest("Content-Length and Transfer-Encoding exclude each other.")
        return None
    if length is None:
        return 0
    if not length.isdigit():
        raise InvalidRequest("Content-Length is not a number.")
    if len(length) > 18 or int(length) > limit:
        raise too_large(limit)
    return int(length)


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request's body is larger than {limit} bytes.", details={"max_body_bytes": limit}
    )


def _counted(receive: Receive, limit: int) -> Receive:
    """Wrap ``receive`` so that it raises PayloadTooLarge, once, after ``limit`` bytes."""
    left = limit

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        before = left
        left -= len(message.get("body", b""))
        if left < 0 <= before:
            raise too_large(limit)
        return message

    return counted


def _check_query(query: bytes) -> None:
    """Refuse credentials in an address: they would end up in logs and histories.

    A query that is too much to look through is refused as it is.
    """
    if len(query) > _LONGEST_QUERY or query.count(b"&") >= _MOST_PARAMETERS:
        raise InvalidRequest(
            f"The address has more than {_MOST_PARAMETERS} parameters or {_LONGEST_QUERY} bytes "
            "of them."
        )
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _CREDENTIAL_NAMES or _SECRET.search(value) or _SECRET.search(name):
            raise InvalidRequest(
                "Credentials belong in the Authorization header, never in the address."
            )
