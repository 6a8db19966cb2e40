"""Images over real sockets: bounds, uploads, events, both surfaces; the engine is a script."""

import asyncio
import base64
import io
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.support.api_server import Served, serve
from tests.support.http_client import code_on, error_of
from tests.support.sse import events_of
from tests.support.wait import eventually
from workers import protocol

NATIVE = "/api/v1/inference/image-generation"
GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
AUDIO = (
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/api/v1/inference/transcription",
)
ASKED = {"model": "painter", "prompt": "a fox", "width": 64, "height": 64, "steps": 4}
PIXELS = b"the bytes of a picture"


PAINTER = {
    "steps": 7,
    "max_megapixels": 2,
    "width": 512,
    "loras": {"bold": "bold.safetensors", "soft": "soft.safetensors"},
    "default_loras": {"bold": 0.5},
}

UPLOADED: dict[str, bytes] = {}  #: what the worker found at the paths of its jobs


async def paint(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Draw as the prompt says; previews are the step's number."""
    assert isinstance(job, protocol.ImageJob)
    yield protocol.Started(id=job.id)
    if job.image is not None:
        UPLOADED[job.image] = await asyncio.to_thread(Path(job.image).read_bytes)
    if job.prompt == "!fail":
        yield protocol.Failed(id=job.id, code="OUT_OF_MEMORY", message="no")
        return
    for step in range(1, job.steps + 1):
        due = job.preview_every and step % job.preview_every == 0 and step < job.steps
        preview = b"%d" % step if due else b""
        yield protocol.Progress(id=job.id, step=step, steps=job.steps, preview=preview)
    for index in range(len(job.seeds)):
        name = protocol.image_file_name(job.id, index, job.format)
        (Path(job.folder) / name).write_bytes(PIXELS)
    pictures = tuple(
        protocol.ImageFile(
            width=job.width, height=job.height, seed=seed, format=job.format, bytes=len(PIXELS)
        )
        for seed in job.seeds
    )
    yield protocol.ImageDone(
        id=job.id, images=pictures, steps=job.steps, scheduler="ddim", guidance_scale=7.5
    )


@pytest.fixture(scope="module")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(
        tmp_path_factory.mktemp("images"),
        paint,
        server={"max_body_bytes": 100_000, "max_upload_bytes": 200_000},
        limits={"tiers": {"free": {"image": {"max_megapixels": 5}}}},
        models={"painter": {"image": PAINTER}},
    ) as served:
        yield served


@pytest.fixture
def client(image_server: Served) -> Iterator[httpx.Client]:
    headers = image_server.headers("inference:image")
    with httpx.Client(base_url=image_server.url, headers=headers, timeout=60) as client:
        yield client
    image_server.wait_idle()


@pytest.fixture
def official(image_server: Served) -> openai.OpenAI:
    key = image_server.keys["inference:image"]
    return openai.OpenAI(base_url=f"{image_server.url}/v1", api_key=key, max_retries=0)


def last_job(image_server: Served) -> protocol.ImageJob:
    """Return the last message to the worker."""
    job = image_server.workers.jobs[-1]
    assert isinstance(job, protocol.ImageJob)
    return job


def picture(width: int = 100, height: int = 72, kind: str = "png", **more: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, kind, **more)
    return out.getvalue()


def animation() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "webp", save_all=True, append_images=frames[1:])
    return out.getvalue()


def test_image_request_of_the_design_and_its_defaults(
    client: httpx.Client, image_server: Served
) -> None:
    body = client.post(NATIVE, json={**ASKED, "seed": 5, "n": 2}).json()
    assert body["status"] == "completed"
    assert [image["seed"] for image in body["result"]["images"]] == [5, 6]
    assert base64.b64decode(body["result"]["images"][0]["b64"]) == PIXELS
    assert body["usage"] == {"images": 2, "megapixels": 0.008192, "megapixel_steps": 0.032768}
    client.post(NATIVE, json={"model": "painter", "prompt": "a fox"})
    job = last_job(image_server)
    assert (job.width, job.height, job.steps, job.guidance_scale) == (512, 1024, 7, None)
    assert (job.format, job.preview_every, len(job.seeds)) == ("png", 0, 1)


def test_seed_has_64_bits_and_a_negative_one_is_taken_modulo(client: httpx.Client) -> None:
    for seed, seeds in (
        (2**64 - 1, [2**64 - 1, 0]),
        (-1, [2**64 - 1, 0]),
        (2**63, [2**63, 2**63 + 1]),
    ):
        made = client.post(NATIVE, json={**ASKED, "seed": seed, "n": 2}).json()["result"]["images"]
        assert [image["seed"] for image in made] == seeds


def test_seed_differs_between_requests_without_one(client: httpx.Client) -> None:
    answers = [client.post(NATIVE, json=ASKED).json() for _ in range(3)]
    assert len({answer["result"]["images"][0]["seed"] for answer in answers}) == 3


def test_image_stream_shows_each_step_and_some_previews(client: httpx.Client) -> None:
    seen = events_of(client.post(NATIVE, json={**ASKED, "stream": True, "preview": 2}).text)
    assert [name for name, _ in seen] == ["started", *["progress"] * 4, "completed"]
    steps = [data for name, data in seen if name == "progress"]
    assert [data["step"] for data in steps] == [1, 2, 3, 4]
    assert [base64.b64decode(data["preview"]) for data in steps if "preview" in data] == [b"2"]
    assert base64.b64decode(seen[-1][1]["result"]["images"][0]["b64"]) == PIXELS


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"width": 56}, "width"),
        ({"height": 2056}, "height"),
        ({"width": 100}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 151}, "steps"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"guidance_scale": 50.1}, "guidance_scale"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"width": 2048, "height": 1024}, "width"),
        ({"width": 1024, "height": 1024, "n": 5}, "n"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"format": "gif"}, "format"),
        ({"loras": [{"name": "x", "scale": 5}]}, "loras[0].scale"),
        ({"mask": "aaaa"}, "mask"),
        ({"image": "!!!"}, "image"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "image"),
        ({"image": base64.b64encode(animation()).decode()}, "image"),
        ({"prompt": "x" * 20_000}, "prompt"),
    ],
)
def test_image_field_out_of_bounds_is_refused(
    client: httpx.Client, change: dict[str, Any], param: str
) -> None:
    error = error_of(client.post(NATIVE, json={**ASKED, **change}), 400, "INVALID_REQUEST")
    assert error["param"] == param


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_image_number_that_is_not_finite_is_refused(client: httpx.Client, text: str) -> None:
    body = json.dumps(ASKED)[:-1] + f', "guidance_scale": {text}}}'
    headers = {"content-type": "application/json"}
    answer = client.post(NATIVE, content=body, headers=headers)
    assert error_of(answer, 400, "INVALID_REQUEST")["param"] in (None, "guidance_scale")


def test_image_field_that_needs_another_is_refused_by_name(client: httpx.Client) -> None:
    for param, value in [("strength", 0.5), ("cfg", 3)]:
        answer = client.post(NATIVE, json={**ASKED, param: value})
        assert error_of(answer, 400, "UNSUPPORTED_PARAMETER")["param"] == param


def test_image_request_for_a_text_model_is_refused(client: httpx.Client) -> None:
    error = error_of(client.post(NATIVE, json={**ASKED, "model": "demo"}), 400, "INVALID_REQUEST")
    assert error["param"] == "model"
    error_of(client.post(NATIVE, json={**ASKED, "model": "none"}), 404, "INVALID_MODEL")


def test_upload_reaches_the_worker_unchanged(client: httpx.Client, image_server: Served) -> None:
    sent = picture()
    text = "data:image/png;base64," + base64.b64encode(sent).decode()
    mask = base64.b64encode(picture(kind="webp")).decode()
    client.post(NATIVE, json={**ASKED, "image": text, "mask": mask, "strength": 0.5})
    job = last_job(image_server)
    assert job.image is not None
    assert UPLOADED[job.image] == sent
    assert job.mask is not None
    assert job.strength == 0.5


def test_loras_are_the_request_s_or_else_the_model_s_own(
    client: httpx.Client, image_server: Served
) -> None:
    for loras, expected in [
        (None, (protocol.Lora("bold", 0.5),)),
        ([], ()),
        ([{"name": "soft"}], (protocol.Lora("soft", 1.0),)),
    ]:
        client.post(NATIVE, json={**ASKED, "loras": loras})
        assert last_job(image_server).adapters == expected


def test_openai_client_generates_images(official: openai.OpenAI, image_server: Served) -> None:
    made = official.images.generate(model="painter", prompt="a fox", size="64x128", n=2)
    assert made.data is not None
    assert [base64.b64decode(each.b64_json or "") for each in made.data] == [PIXELS, PIXELS]
    assert made.size == "64x128"
    job = last_job(image_server)
    assert (job.width, job.height, job.steps) == (64, 128, 7)
    extra = {"steps": 3, "seed": 9, "guidance_scale": 2, "negative_prompt": "x"}
    official.images.generate(
        model="painter", prompt="a fox", output_format="webp", extra_body=extra
    )
    job = last_job(image_server)
    assert (job.steps, job.seeds, job.format, job.negative_prompt) == (3, (9,), "webp", "x")


def test_openai_client_streams_partial_images(official: openai.OpenAI) -> None:
    stream = official.images.generate(
        model="painter", prompt="a fox", stream=True, partial_images=2, extra_body={"steps": 10}
    )
    seen = list(stream)
    partial, final = [*seen[:-1]], seen[-1]
    assert [base64.b64decode(each.b64_json) for each in partial] == [b"3", b"6"]
    assert [each.partial_image_index for each in partial] == [0, 1]  # type: ignore[union-attr]
    assert final.type == "image_generation.completed"
    assert base64.b64decode(final.b64_json) == PIXELS


def test_openai_client_edits_images(official: openai.OpenAI, image_server: Served) -> None:
    made = official.images.edit(
        model="painter", image=picture(), mask=picture(), prompt="a dog", extra_body={"steps": 2}
    )
    assert made.size == "96x72"  # the picture's own, in multiples of eight
    job = last_job(image_server)
    assert (job.steps, job.prompt) == (2, "a dog")
    assert UPLOADED[job.image or ""] == picture()
    [last] = [
        event
        for event in official.images.edit(
            model="painter", image=picture(4000, 1000), prompt="a dog", stream=True
        )
        if event.type == "image_edit.completed"
    ]
    assert last.size == "2048x512"


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"image": [picture(), picture()]}, "UNSUPPORTED_PARAMETER", "image"),
        ({"image": b"no picture"}, "INVALID_REQUEST", "image"),
        ({"image": picture(), "mask": b""}, "INVALID_REQUEST", "mask"),
        ({"image": picture(), "size": "large"}, "INVALID_REQUEST", "size"),
        ({"image": picture(), "quality": "high"}, "UNSUPPORTED_PARAMETER", "quality"),
        ({"image": picture(), "n": 99}, "INVALID_REQUEST", "n"),
        ({"image": picture(), "partial_images": 1}, "INVALID_REQUEST", "partial_images"),
    ],
)
def test_image_edit_that_is_not_valid_is_refused(
    official: openai.OpenAI, given: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        official.images.edit(model="painter", prompt="x", **given)
    assert (refused.value.code, refused.value.param) == (code_on(EDITS, code), param)


def test_form_that_is_not_valid_is_refused(client: httpx.Client) -> None:
    error_of(client.post(EDITS, json={"model": "painter"}), 415, "UNSUPPORTED_MEDIA_TYPE")
    form = {"content-type": "multipart/form-data; boundary=x"}
    error_of(client.post(EDITS, content=b"nonsense", headers=form), 400, "INVALID_REQUEST")
    fields = {"model": "painter", "prompt": "x"}
    answer = client.post(EDITS, data=fields, files={"other": picture()})
    assert error_of(answer, 400, "UNSUPPORTED_PARAMETER")["param"] == "other"
    answer = client.post(EDITS, data={**fields, "image": "word"}, files={"mask": picture()})
    assert error_of(answer, 400, "INVALID_REQUEST")["param"] == "image"
    many = [("image", (f"{number}.png", b"x")) for number in range(20)]
    error_of(client.post(EDITS, data=fields, files=many), 400, "INVALID_REQUEST")
    large = {"image": b"x" * 200_001}
    error_of(client.post(EDITS, data=fields, files=large), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "idna", '"raw_unicode_escape"', "none"])
@pytest.mark.parametrize("url", [EDITS, *AUDIO])
def test_form_in_another_encoding_is_refused(image_server: Served, url: str, charset: str) -> None:
    name = b"+2AA-"  # half a character in UTF-7, which nothing can encode again
    body = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\na\r\n--x--\r\n' % name
    headers = {
        **image_server.headers("inference:image" if url == EDITS else "inference:audio"),
        "content-type": f"multipart/form-data; boundary=x; charset={charset}",
    }
    answer = httpx.post(image_server.url + url, content=body, headers=headers)
    error_of(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


def form_part(name: bytes, data: bytes, more: bytes = b"") -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n' % (name, more)
    return head + data + b"\r\n"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form_part(b"prompt", b"\xff") + b"--x--\r\n", "prompt"),
        (form_part(b"\xff", b"a") + b"--x--\r\n", None),
        (form_part(b"prompt", b"a"), None),
        (form_part(b"prompt", b"a") + form_part(b"image", b"a", b'; filename="a"'), None),
        (b"--x--\r\n", None),
        (b"", None),
        (b"--x\r\n\r\na\r\n--x--\r\n", None),
        (form_part(b"prompt", b"a" * 70_000) + b"--x--\r\n", "prompt"),
        (form_part(b"prompt", b"a") * 2 + b"--x--\r\n", "prompt"),
        (form_part(b"a", b"a") + form_part(b"a[]", b"a") + b"--x--\r\n", "a[]"),
        (b"".join(form_part(b"f%d" % n, b"") for n in range(99)) + b"--x--\r\n", None),
        (form_part(b"model", b"painter") + form_part(b"n", b"1e999") + b"--x--\r\n", "prompt"),
    ],
)
def test_form_that_is_broken_is_refused(
    client: httpx.Client, image_server: Served, body: bytes, param: str | None
) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post(EDITS, content=body, headers=headers)
    assert error_of(answer, 400, "INVALID_REQUEST")["param"] == param
    eventually(lambda: not list(image_server.home.uploads.iterdir()))
    assert image_server.services.uploads.bytes == 0


def test_form_that_arrives_is_counted_and_holds_no_descriptor(
    image_server: Served,
) -> None:
    uploads, folder = image_server.services.uploads, image_server.home.uploads
    head = (
        f"POST {EDITS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 190000\r\n"
        f"Authorization: {image_server.headers('inference:image')['authorization']}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    ).encode()
    part = form_part(b"image", b"a" * 50_000, b'; filename="a"')
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_connection(("127.0.0.1", image_server.port)) as sender:
        sender.sendall(head + 3 * part)
        eventually(lambda: uploads.bytes == 150_000)
        assert sum(path.stat().st_size for path in folder.iterdir()) == 150_000
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)  # the two sockets
    eventually(lambda: uploads.bytes == 0 and not list(folder.iterdir()))


def test_form_in_utf_8_may_say_so(client: httpx.Client) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\npainter\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x; charset=UTF-8"}
    answer = client.post(EDITS, content=body, headers=headers)
    assert error_of(answer, 400, "INVALID_REQUEST")["param"] == "prompt"


def test_image_job_that_fails_is_an_error_on_both_surfaces(client: httpx.Client) -> None:
    error_of(client.post(NATIVE, json={**ASKED, "prompt": "!fail"}), 500, "OUT_OF_MEMORY")
    asked = {"model": "painter", "prompt": "!fail"}
    error_of(client.post(GENERATIONS, json=asked), 500, "OUT_OF_MEMORY")
    error_of(client.post(GENERATIONS, json={**asked, "stream": True}), 500, "OUT_OF_MEMORY")
