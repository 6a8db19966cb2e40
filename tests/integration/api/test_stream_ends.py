"""A stream ends in exactly one way, however its job ends: its mark, an error, or neither."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, NATIVE
from tests.support.sse import STREAM_END, SseEvent, events_of, iter_events

COMPLETIONS = "/v1/completions"
SURFACES = [NATIVE, CHAT, COMPLETIONS]
FINAL = {"completed", "failed", "cancelled"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cache = {"responses": True}
    server = {"request_timeout": 0.5, "stream_comment_interval": 0.05}
    with serve(tmp_path_factory.mktemp("ends"), cache=cache, server=server) as served:
        yield served


def body_of(path: str, prompt: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": "demo", "stream": True, "temperature": 0}
    if path == CHAT:
        return {**asked, "messages": [{"role": "user", "content": prompt}]}
    return {**asked, "prompt": prompt}


def ends(events: list[SseEvent]) -> list[str]:
    """Return every event that says that the stream is over."""
    found = []
    for name, data in events:
        if (name, data) == STREAM_END:
            found.append("done")
        elif name in FINAL:
            found.append(name)
        elif isinstance(data, dict) and "error" in data:
            found.append("error")
    return found


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize(
    ("prompt", "native", "openai"),
    [
        ("hi", "completed", "done"),
        ("!crash", "failed", "error"),
        ("!cancel", "cancelled", "error"),
        ("!stall", "failed", "error"),  # its time ends in the middle of the output
    ],
)
def test_stream_ends_in_exactly_one_way(
    client: httpx.Client, path: str, prompt: str, native: str, openai: str
) -> None:
    for _ in range(2):  # an answer that is whole comes from the cache then
        answer = client.post(path, json=body_of(path, prompt))
        assert answer.status_code == 200
        events = events_of(answer.text)
        assert ends(events) == [native if path == NATIVE else openai]
        assert ends(events[-1:]) != []  # and nothing comes after it
    assert answer.headers["x-cache"] == ("HIT" if prompt == "hi" else "MISS")


@pytest.mark.parametrize("path", [NATIVE, CHAT])
def test_stream_of_a_follower_ends_in_exactly_one_way(client: httpx.Client, path: str) -> None:
    asked = body_of(path, "!wait again")
    with client.stream("POST", path, json=asked) as first, ThreadPoolExecutor(1) as pool:
        follower = pool.submit(client.post, path, json=asked)
        first.read()
    for answer in (first, follower.result()):
        assert answer.status_code == 200
        assert ": keep-alive\n\n" in answer.text
        assert ends(events_of(answer.text)) == ["failed" if path == NATIVE else "error"]


@pytest.mark.parametrize("path", SURFACES)
def test_stream_of_a_revoked_key_ends_in_exactly_one_way(
    served: Served, admin: httpx.Client, path: str
) -> None:
    made = admin.post("/api/v1/keys", json={"name": "n"}).json()
    headers, url = {"x-api-key": made["key"]}, served.url + path
    with httpx.stream("POST", url, json=body_of(path, "!flood"), headers=headers) as stream:
        events = iter_events(stream.iter_lines())
        seen = [next(events), next(events)]
        admin.delete(f"/api/v1/keys/{made['id']}")
        seen += events
    assert ends(seen) == ["cancelled" if path == NATIVE else "error"]
    assert ends(seen[-1:]) != []
    served.wait_idle()
