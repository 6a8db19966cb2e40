"""Links to images: a browser opens them without a key, for as long as their owner may."""

from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.api_server import Served, serve
from tests.support.http_client import error_of
from tests.support.metered_server import new_client
from tests.support.websocket_client import heard, open_watch
from workers import protocol

PIXELS = b"the bytes of a picture"
ASKED: dict[str, Any] = {"model": "painter", "prompt": "fox", "size": "64x64"}
GENERATIONS = "/v1/images/generations"


LARGE = b"the bytes of a large picture" * 100_000  #: more than clients of WebSockets take


async def paint(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    assert isinstance(job, protocol.ImageJob)
    pixels = LARGE if job.prompt == "large" else PIXELS
    for index, _ in enumerate(job.seeds):
        name = protocol.image_file_name(job.id, index, job.format)
        (Path(job.folder) / name).write_bytes(pixels)
    made = [
        protocol.ImageFile(width=64, height=64, seed=seed, format=job.format, bytes=len(pixels))
        for seed in job.seeds
    ]
    yield protocol.ImageDone(id=job.id, images=tuple(made), steps=job.steps, scheduler="x")


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("links"), paint) as served:
        yield served


@pytest.fixture
def admin(painting: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=painting.url, headers=painting.headers("admin")) as client:
        yield client


def link(owner: httpx.Client) -> httpx.URL:
    made = owner.post(GENERATIONS, json={**ASKED, "response_format": "url"})
    assert made.status_code == 200, made.text
    return httpx.URL(made.json()["data"][0]["url"])


def test_link_is_opened_by_a_browser_without_a_key(painting: Served) -> None:
    key = painting.keys["inference:image"]
    official = openai.OpenAI(base_url=f"{painting.url}/v1", api_key=key, max_retries=0)
    images = official.images.generate(
        model="painter", prompt="fox", size="256x256", n=2, response_format="url"
    ).data
    assert images is not None
    for image in images:
        assert image.url is not None
        found = httpx.get(image.url)
        assert (found.status_code, found.content) == (200, PIXELS)
        assert found.headers["content-type"] == "image/png"
        assert found.headers["cache-control"] == "private, no-store"
        assert found.headers["referrer-policy"] == "no-referrer"
        plain = httpx.URL(image.url).copy_with(query=None)
        error_of(httpx.get(plain), 401, "INVALID_API_KEY")
        # With the key in a header the same address works, too.
        assert httpx.get(plain, headers=painting.headers("inference:image")).content == PIXELS


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "0" * 64},
        {"signature": ""},
        {"expires": "99999999999"},
        {"expires": ""},
    ],
)
def test_link_that_was_changed_opens_nothing(
    painting: Served, admin: httpx.Client, change: dict[str, str]
) -> None:
    with new_client(admin) as owner:
        changed = link(owner).copy_merge_params(change)
    error_of(httpx.get(changed), 401, "INVALID_TOKEN")
    error_of(httpx.get(changed, headers=painting.headers("inference:image")), 401, "INVALID_TOKEN")


def test_link_opens_no_other_file_and_takes_no_other_parameter(admin: httpx.Client) -> None:
    with new_client(admin) as owner:
        first, second = link(owner), link(owner)
    other = first.copy_with(path=second.path, query=first.query)
    error_of(httpx.get(other), 401, "INVALID_TOKEN")
    more = httpx.get(first.copy_add_param("width", "9"))
    error_of(more, 400, "UNSUPPORTED_PARAMETER")
    assert httpx.get(first).content == PIXELS


def test_link_ends_with_its_time(
    painting: Served, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_client(admin) as owner:
        address = link(owner)
    links = painting.services.links
    now = links._clock()
    monkeypatch.setattr(links, "_clock", lambda: now + 3601)
    error_of(httpx.get(address), 404, "FILE_NOT_FOUND")


@pytest.mark.parametrize(
    "change", [{"models": ["demo"]}, {"scopes": ["inference:text"]}, None], ids=str
)
def test_link_ends_with_what_its_owner_may(
    admin: httpx.Client, change: dict[str, Any] | None
) -> None:
    with new_client(admin) as owner:
        address = link(owner)
        key_id = owner.get("/api/v1/limits").json()["key_id"]
    path = f"/api/v1/keys/{key_id}"
    done = admin.delete(path) if change is None else admin.patch(path, json=change)
    assert done.status_code in (200, 204), done.text
    error_of(httpx.get(address), 404, "FILE_NOT_FOUND")


def test_link_of_a_key_for_some_addresses_opens_from_these_only(admin: httpx.Client) -> None:
    with new_client(admin, ip_ranges=["127.0.0.0/8"]) as owner:
        address = link(owner)
        key_id = owner.get("/api/v1/limits").json()["key_id"]
    assert httpx.get(address).status_code == 200
    admin.patch(f"/api/v1/keys/{key_id}", json={"ip_ranges": ["10.0.0.0/8"]})
    error_of(httpx.get(address), 403, "IP_NOT_ALLOWED")


@pytest.mark.parametrize("prompt", ["fox", "large"])
def test_link_stands_for_a_large_image_in_a_message_of_a_websocket(
    painting: Served, admin: httpx.Client, prompt: str
) -> None:
    asked = {"model": "painter", "prompt": prompt, "width": 64, "height": 64, "async": True}
    task_id = admin.post("/api/v1/inference/image-generation", json=asked).json()["task_id"]
    for _ in ("early", "late"):
        with open_watch(painting.url, task_id, **painting.headers("admin")) as socket:
            [*_, (name, data)], code = heard(socket)
        assert (name, code) == ("completed", 1000)
        [image] = data["result"]["images"]
        assert ("url" in image, "b64" in image) == (prompt == "large", prompt != "large")
        if prompt == "large":
            assert admin.get(image["url"]).content == LARGE
    [whole] = admin.get(f"/api/v1/tasks/{task_id}").json()["result"]["images"]
    assert b64decode(whole["b64"]) == (LARGE if prompt == "large" else PIXELS)
