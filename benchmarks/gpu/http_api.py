"""Calls the server's HTTP API without further libraries: blocking, with timeouts."""

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_PATIENCE = 60.0  #: seconds without a byte


@dataclass(frozen=True, slots=True)
class Answer:
    """Holds a status and the decoded body; ``seconds`` from the request to the last byte."""

    status: int
    body: dict[str, Any]
    seconds: float

    @property
    def code(self) -> str:
        """Return the code of an error, in upper case; empty for a success."""
        error = self.body.get("error") or {}
        return str(error.get("code", "")).upper()


@dataclass(frozen=True, slots=True)
class Event:
    """Holds one ``data`` object of a stream, and when it came, by ``perf_counter``."""

    at: float
    data: dict[str, Any]


class Api:
    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        patience: float = _PATIENCE,
    ) -> Answer:
        """Send a request and read the whole answer. Raises OSError, TimeoutError among them."""
        began = time.perf_counter()
        with closing(self._connect(patience)) as connection:
            connection.request(method, path, _encoded(body), self._headers)
            response = connection.getresponse()
            data = response.read()
        seconds = time.perf_counter() - began
        return Answer(response.status, json.loads(data) if data else {}, seconds)

    def get(self, path: str) -> dict[str, Any]:
        """Return the body of a successful GET. Raises AssertionError for another status."""
        return _expect(self.ask("GET", path), path).body

    def post(
        self, path: str, body: dict[str, Any] | None = None, patience: float = _PATIENCE
    ) -> Answer:
        """Return the answer of a successful POST. Raises AssertionError for another status."""
        return _expect(self.ask("POST", path, body or {}, patience), path)

    def stream(
        self, path: str, body: dict[str, Any], patience: float = _PATIENCE
    ) -> Iterator[Event]:
        """Return the objects of an event stream until ``[DONE]`` or its end; an error is one of
        them.

        Raises AssertionError for a status other than 200, OSError where the connection breaks.
        """
        with closing(self._connect(patience)) as connection:
            connection.request("POST", path, _encoded({**body, "stream": True}), self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise AssertionError(
                    f"{path} answered {response.status}: {response.read()[:500]!r}"
                )
            for line in response:
                text = line.strip()
                if text.startswith(b"data:") and text != b"data: [DONE]":
                    yield Event(time.perf_counter(), json.loads(text[5:]))

    def _connect(self, patience: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=patience)


def _encoded(body: dict[str, Any] | None) -> bytes | None:
    return None if body is None else json.dumps(body).encode()


def _expect(answer: Answer, path: str) -> Answer:
    if not http.client.OK <= answer.status < http.client.MULTIPLE_CHOICES:
        raise AssertionError(f"{path} answered {answer.status}: {json.dumps(answer.body)[:1000]}")
    return answer
