"""Pictures in messages, from the request to the worker: files, the guard, the cache, the limits."""

from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.home import Home
from model_store.store import ModelStore
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, error_of
from tests.support.model_folders import llama, write
from tests.support.models.vision import png
from tests.support.other_program import change
from tests.support.task_client import await_status, begin
from tests.support.wait import eventually
from workers import protocol

MAIL = "john.doe@example.com"


def _described(part: str | protocol.Picture) -> str:
    if isinstance(part, str):
        return part
    return f"<{part.width}x{part.height}: {Path(part.source).stat().st_size}>"


async def describe(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Say which texts came, and how large the files of the pictures between them are."""
    assert isinstance(job, protocol.TextJob)
    said = "".join(_described(part) for each in job.messages or () for part in each.parts())
    yield protocol.Started(id=job.id, prompt_tokens=1)
    yield protocol.TextDone(
        id=job.id,
        choices=(protocol.TextChoice(text=said, finish_reason="stop"),),
        prompt_tokens=1,
        completion_tokens=1,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("pictures")
    home = Home(root / "home")
    home.create()
    folder = llama(root / "seer", architectures=["LlavaForConditionalGeneration"])
    write(folder / "preprocessor_config.json", {})
    ModelStore(home.models).import_folder(folder, "seer")
    languages = {"source_language": "en_XX", "target_language": "de_DE"}
    with serve(
        root,
        describe,
        cache={"responses": True},
        limits={
            "pictures": {"max_count": 2, "max_megapixels": 0.01},
            "tiers": {"free": {"guard": {"input": "redact", "output": "off"}}},
        },
        models={"seer": {"text": languages}},
    ) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    headers = served.headers("inference:text")
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client
    served.wait_idle()
    eventually(lambda: not list(served.home.uploads.iterdir()))


def asked(*parts: str | bytes, **fields: Any) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{b64encode(part).decode()}"},
        }
        for part in parts
    ]
    return {"model": "seer", "messages": [{"role": "user", "content": content}], **fields}


def test_message_pictures_reach_the_worker_between_redacted_texts(client: httpx.Client) -> None:
    one, other = png(1), png(2, (30, 20))
    body = asked(f"from {MAIL}: ", one, " and ", other)
    answer = client.post(CHAT, json=body)
    said = answer.json()["choices"][0]["message"]["content"]
    assert said == f"from [EMAIL]: <60x40: {len(one)}> and <30x20: {len(other)}>"


def test_message_pictures_are_kept_until_a_task_has_ended(client: httpx.Client) -> None:
    one = png(3)
    task = begin(client, asked("what? ", one))
    ended = await_status(client, task, "completed")
    assert ended["result"]["text"] == f"what? <60x40: {len(one)}>"


def test_message_pictures_of_a_response_that_cannot_be_kept_are_removed(
    client: httpx.Client, served: Served
) -> None:
    url = f"data:image/png;base64,{b64encode(png(6)).decode()}"
    turn = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    body = {"model": "seer", "input": [turn], "background": True}
    change(served.home.database, "ALTER TABLE responses RENAME TO elsewhere")
    try:
        assert client.post("/v1/responses", json=body).status_code == 500
    finally:
        change(served.home.database, "ALTER TABLE elsewhere RENAME TO responses")
    assert client.post("/v1/responses", json=body).status_code == 200


def test_message_pictures_are_part_of_what_the_cache_knows(client: httpx.Client) -> None:
    same = asked("cached? ", png(4), temperature=0)
    outcomes = [client.post(CHAT, json=same).headers["x-cache"] for _ in range(2)]
    other = client.post(CHAT, json=asked("cached? ", png(5), temperature=0))
    assert (*outcomes, other.headers["x-cache"]) == ("MISS", "HIT", "MISS")


@pytest.mark.parametrize(
    ("parts", "param", "reason"),
    [
        ([png(1), png(2), png(3)], "messages", "at most 2"),
        (["a", png(1, (200, 100))], "messages[0].content[1]", "0.01 megapixels"),
        ([png(1, (80, 80)), png(2, (80, 80))], "messages[0].content[1]", "together"),
    ],
    ids=["count", "one", "all"],
)
def test_message_pictures_are_bounded_by_the_settings(
    client: httpx.Client, parts: list[str | bytes], param: str, reason: str
) -> None:
    refused = client.post(CHAT, json=asked(*parts))
    error = error_of(refused, 400, "invalid_value")
    assert error["param"] == param
    assert reason in error["message"]


def test_languages_of_the_settings_reach_the_worker(client: httpx.Client, served: Served) -> None:
    assert client.post(CHAT, json=asked("hi")).status_code == 200
    options = served.workers.loads[-1].text
    assert options is not None
    assert (options.source_language, options.target_language) == ("en_XX", "de_DE")
