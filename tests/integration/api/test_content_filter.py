"""Listed words and flagged images over real sockets."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, NATIVE, error_of
from tests.support.speaking_worker import say, speak
from tests.support.sse import STREAM_END, events_of
from workers import protocol

SCOPE = "inference:text"
IMAGES = "/api/v1/inference/image-generation"
TEXT = "One may say so, but a very bad thing is never said."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("words")
    (root / "words").write_text("# words\nvery bad thing\n")
    guard = {
        "words_file": str(root / "words"),
        "words": ["forbidden"],
        "words_input": "block",
        "words_output": "block",
        "flagged_images": "refuse",
    }
    report = {"words_input": "report", "words_output": "report"}
    tiers = {"operator": {"guard": report}, "free": {"guard": {}}}
    with serve(root, _work, guard=guard, limits={"tiers": tiers}) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers=served.headers(SCOPE), timeout=60) as client:
        yield client
    served.wait_idle()


async def _work(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    if not isinstance(job, protocol.ImageJob):
        async for event in speak(job):
            yield event
        return
    yield protocol.Started(id=job.id)
    yield protocol.Progress(id=job.id, step=1, steps=1, preview=b"jpeg")
    made = [
        protocol.ImageFile(
            width=64, height=64, seed=seed, format="png", bytes=1, filtered=bool(number)
        )
        for number, seed in enumerate(job.seeds)
    ]
    yield protocol.ImageDone(id=job.id, images=tuple(made), steps=1, scheduler="s")


def test_prompt_with_a_listed_word_is_refused(served: Served, client: httpx.Client) -> None:
    served.workers.jobs.clear()
    prompt = client.post(NATIVE, json={"model": "demo", "prompt": "a VERY-bad\nthing"})
    error = error_of(prompt, 400, "CONTENT_FILTERED")
    assert (error["param"], error["details"]) == ("prompt", {"count": 1})
    assert "thing" not in prompt.text
    messages = [{"role": "user", "content": "f\u043erbidden"}]  # with a Cyrillic letter
    chat = client.post(CHAT, json={"model": "demo", "messages": messages})
    assert error_of(chat, 400, "CONTENT_FILTERED")["param"] == "messages[0].content"
    assert served.workers.jobs == []


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_answer_ends_before_a_listed_phrase_is_shown(client: httpx.Client, size: int) -> None:
    body = {"model": "demo", "prompt": say(TEXT, size)}
    error_of(client.post(NATIVE, json=body), 400, "CONTENT_FILTERED")
    stream = client.post(NATIVE, json={**body, "stream": True})
    events = events_of(stream.text)
    assert events[-1][0] == "failed"
    assert events[-1][1]["error"]["code"] == "CONTENT_FILTERED"
    shown = "".join(data["text"] for name, data in events if name == "token")
    assert "One may say so, but a ".startswith(shown)
    chat = {"model": "demo", "messages": [{"role": "user", "content": say(TEXT, size)}]}
    answer = client.post(CHAT, json={**chat, "stream": True})
    assert "very" not in answer.text
    assert "[DONE]" not in answer.text


def test_answer_without_listed_words_is_whole(client: httpx.Client) -> None:
    text = "It is very bad that nothing is forbidding; a very bad th"
    messages = [{"role": "user", "content": say(text)}]
    answer = client.post(CHAT, json={"model": "demo", "messages": messages, "stream": True})
    events = events_of(answer.text)
    assert events[-1] == STREAM_END
    shown = [data["choices"][0]["delta"].get("content", "") for _, data in events[:-1]]
    assert "".join(shown) == text


def test_listed_words_that_are_reported_change_nothing(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers=served.headers("admin")) as admin:
        answer = admin.post(NATIVE, json={"model": "demo", "prompt": say(TEXT)})
        assert answer.json()["result"]["text"] == TEXT
        admin.post(NATIVE, json={"model": "demo", "prompt": TEXT}).raise_for_status()
        metrics = admin.get("/metrics").text
    for direction in ("input", "output"):
        labels = f'action="report",class="words",direction="{direction}"'
        assert f"bitinglip_guard_detections_total{{{labels}}}" in metrics


def test_flagged_image_is_refused_and_no_preview_is_shown(served: Served) -> None:
    headers = served.headers("inference:image")
    body = {"model": "painter", "prompt": "a cat", "width": 64, "height": 64, "preview": True}
    with httpx.Client(base_url=served.url, headers=headers) as client:
        answer = client.post(IMAGES, json={**body, "n": 2})
        assert error_of(answer, 400, "CONTENT_FILTERED")["details"] == {"images": [1]}
        stream = events_of(client.post(IMAGES, json={**body, "n": 2, "stream": True}).text)
        metrics = httpx.get(f"{served.url}/metrics").text
        refused = client.post(IMAGES, json={**body, "prompt": "forbidden"})
        error_of(refused, 400, "CONTENT_FILTERED")
    assert [data for name, data in stream if name == "progress"] == [{"step": 1, "steps": 1}]
    assert stream[-1][1]["error"]["code"] == "CONTENT_FILTERED"
    labels = 'action="block",class="images",direction="output"'
    assert f"bitinglip_guard_detections_total{{{labels}}} 2.0" in metrics


def test_list_is_read_again_when_its_file_changes(served: Served, client: httpx.Client) -> None:
    guard, path = served.services.guard, Path(served.services.settings.guard.words_file or "")

    def reload(content: bytes) -> None:
        path.write_bytes(content)
        os.utime(path, ns=(1, len(content)))  # another time, however coarse the clock
        reading = guard.reload(served.services.cache.clear)
        asyncio.run_coroutine_threadsafe(reading, served.loop).result()

    def code(prompt: str) -> int:
        return client.post(NATIVE, json={"model": "demo", "prompt": prompt}).status_code

    before = path.read_bytes()
    reload(b"another\n")
    assert [code("another"), code("very bad thing"), code("forbidden")] == [400, 200, 400]
    reload(b"\xff")
    assert code("another") == 400
    health = client.get("/health").json()
    assert "words" in health["checks"]["guard"]["detail"]
    assert str(path) not in json.dumps(health)
    reload(before)
    assert [code("another"), code("very bad thing")] == [200, 400]
    check = client.get("/health").json()["checks"]["guard"]
    assert (check["ok"], check["detail"]) == (True, "works")
