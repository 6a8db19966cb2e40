"""Hostile texts, ranges and banners: they pass unchanged, or are refused, and are never a 500."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.api_server import Served, serve
from tests.support.cache_rig import Engine
from tests.support.http_client import CHAT, NATIVE, error_of
from workers import protocol

TEXTS = ["a\0b", "\ufeffbom", "\u202egnirts", "\U0001f600\U00020000", "\u212a\uff4bK", "\r\nX: y"]
IMAGES = "/api/v1/inference/image-generation"


def test_unicode_of_a_prompt_reaches_the_worker_and_the_database_unchanged(
    served: Served, client: httpx.Client
) -> None:
    for text in TEXTS:
        messages = [{"role": "user", "content": text}]
        assert client.post(CHAT, json={"model": "demo", "messages": messages}).status_code == 200
        job = served.workers.jobs[-1]
        assert isinstance(job, protocol.TextJob)
        assert (job.messages or ())[-1].content == text
        asked = {"model": "demo", "prompt": text, "async": True}
        assert client.post(NATIVE, json=asked).status_code == 202
        served.wait_idle()
        job = served.workers.jobs[-1]
        assert isinstance(job, protocol.TextJob)
        assert job.prompt == text


@pytest.mark.parametrize(
    "name", ["d\u0435mo", "\uff44emo", "demo\0", "demo\u202e", "demo\r\nX-Evil: 1", "DEMO", "demo "]
)
def test_unicode_name_that_looks_like_a_model_is_unknown(client: httpx.Client, name: str) -> None:
    for path in (NATIVE, "/v1/completions"):
        answer = client.post(path, json={"model": name, "prompt": "hi"})
        assert answer.status_code in (400, 404), answer.text
        assert "x-evil" not in answer.headers


def test_json_with_surrogates_or_non_finite_numbers_is_refused(client: httpx.Client) -> None:
    for member in (
        '"prompt": "\\ud800"',
        '"prompt": "\\udc00\\ud800"',
        '"prompt": "hi", "temperature": 1e400',
        '"prompt": "hi", "temperature": Infinity',
        '"prompt": "hi", "temperature": NaN',
    ):
        answer = client.post(
            NATIVE,
            content=f'{{"model": "demo", {member}}}',
            headers={"content-type": "application/json"},
        )
        error_of(answer, 400, "INVALID_REQUEST")


def test_json_that_names_a_field_twice_has_one_meaning(
    served: Served, client: httpx.Client
) -> None:
    """The last one counts, for the check of the model as for the worker."""
    raw = '{"model": "nobody", "prompt": "first", "model": "demo", "prompt": "last"}'
    answer = client.post(NATIVE, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    job = served.workers.jobs[-1]
    assert isinstance(job, protocol.TextJob)
    assert job.prompt == "last"


def test_banner_of_the_server_is_on_no_response(client: httpx.Client, served: Served) -> None:
    asked = {"model": "demo", "prompt": "hi", "stream": True}
    answers = [client.get("/livez"), client.get("/nope"), client.post(NATIVE, json=asked)]
    answers.append(httpx.get(served.url, headers={"host": "evil.example"}))
    for answer in answers:
        assert not {"server", "x-powered-by"} & set(answer.headers)


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("ranges"), Engine()) as served:
        yield served


def test_ranges_of_a_file_in_great_number_cost_nothing(painting: Served) -> None:
    headers = painting.headers("inference:image")
    with httpx.Client(base_url=painting.url, headers=headers, timeout=60) as client:
        asked = {"model": "painter", "prompt": "fox", "width": 64, "height": 64, "output": "url"}
        url = json.loads(client.post(IMAGES, json=asked).content)["result"]["images"][0]["url"]
        path = "/" + url.split("/", 3)[-1] if "://" in url else url
        whole = client.get(path)
        assert whole.status_code == 200
        for ranges in (
            ",".join(["0-1"] * 1000),
            ",".join(f"{number}-" for number in range(1000)),
            "0-" + "0," * 5000,
            "9" * 5000 + "-",
        ):
            began = time.monotonic()
            answer = client.get(path, headers={"range": f"bytes={ranges}"})
            assert answer.status_code in (200, 206, 400, 416), ranges[:20]
            assert len(answer.content) <= len(whole.content) + 1000
            assert time.monotonic() - began < 30
        assert client.get(path, headers={"range": "bytes=0-3"}).content == whole.content[:4]
