"""Models of another gateway that speak, draw and rank, over real HTTP."""

import asyncio
import io
import struct
import threading
import time
import wave
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.support.api_server import Served, serve
from tests.support.model_folders import llama_tensors, write
from tests.support.sse import iter_events
from tests.support.wait import eventually
from workers import protocol

SPEECH = "/v1/audio/speech"
IMAGES = "/v1/images/generations"
NATIVE_IMAGES = "/api/v1/inference/image-generation"
NATIVE_SPEECH = "/api/v1/inference/text-to-speech"
RATE = 24_000
SAMPLES = bytes(range(240)) * 100
ASKED = list[protocol.Job]()  #: of the workers there
GIVEN = dict[str, bytes]()  #: files of the last job for pictures


def wav(samples: bytes) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples)
    return buffer.getvalue()


def a_picture(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 72)).save(buffer, kind)
    return buffer.getvalue()


async def speak(job: protocol.SpeechJob) -> AsyncIterator[protocol.JobEvent]:
    yield protocol.Started(id=job.id)
    for index in range(2 if job.stream else 0):
        half = SAMPLES[len(SAMPLES) // 2 * index :][: len(SAMPLES) // 2]
        yield protocol.AudioDelta(id=job.id, index=index, samples=half, sample_rate=RATE)
        if job.text == "!stall":
            await asyncio.sleep(60)
    data = b"no sound" if job.text == "!nonsense" else wav(SAMPLES)
    (Path(job.folder) / protocol.audio_file_name(job.id, job.format)).write_bytes(data)
    yield protocol.SpeechDone(
        id=job.id, format=job.format, bytes=len(data), sample_rate=RATE, duration=0.5, sentences=1
    )


async def paint(job: protocol.ImageJob) -> AsyncIterator[protocol.JobEvent]:
    yield protocol.Started(id=job.id)
    GIVEN.clear()
    for name, given in (("image", job.image), ("mask", job.mask)):
        if given is not None:
            GIVEN[name] = await asyncio.to_thread(Path(given).read_bytes)
    if job.prompt == "!stall":
        await asyncio.sleep(60)
    pictures = []
    for index, seed in enumerate(job.seeds):
        path = Path(job.folder) / protocol.image_file_name(job.id, index, job.format)
        width = 8 if job.prompt == "!small" else job.width
        Image.new("RGB", (width, job.height), (seed, 0, 0)).save(path, job.format)
        size = path.stat().st_size
        pictures.append(
            protocol.ImageFile(
                width=width, height=job.height, seed=seed, format=job.format, bytes=size
            )
        )
    yield protocol.ImageDone(
        id=job.id, images=tuple(pictures), steps=job.steps, scheduler="ddim", guidance_scale=1.0
    )


async def work(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Make what the workers there make."""
    ASKED.append(job)
    match job:
        case protocol.EmbeddingJob():
            scores = [-float(len(text)) for text in job.texts]
            vectors = struct.pack(f"<{len(scores)}f", *scores)
            yield protocol.EmbeddingDone(id=job.id, vectors=vectors, dimensions=1, prompt_tokens=9)
        case protocol.SpeechJob():
            async for event in speak(job):
                yield event
        case protocol.ImageJob():
            async for event in paint(job):
                yield event


def model_folder(folder: Path, **config: Any) -> Path:
    write(folder / "config.json", config)
    write(folder / "vocab.json", {"a": 0})
    save_file(llama_tensors(), folder / "model.safetensors")
    return folder


OTHERS: dict[str, dict[str, Any]] = {
    "voice": {"architectures": ["VitsModel"], "model_type": "vits"},
    "ranker": {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_labels": 1,
    },
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("there")
    voices = {"speech": {"voice_aliases": {"nova": "second"}}}
    with serve(root, work, models={"voice": voices}) as served:
        for name, config in OTHERS.items():
            body = {"path": str(model_folder(root / name, **config)), "name": name}
            url = f"{served.url}/api/v1/models/import"
            made = httpx.post(url, json=body, headers=served.headers("admin"), timeout=60)
            assert made.is_success, made.text
        yield served


class Dribbling(BaseHTTPRequestHandler):
    """Begins an answer and never ends it, though it is never silent."""

    gone = threading.Event()  #: a client has closed the connection

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()
        with suppress(OSError):
            while True:
                self.wfile.write(b":\n")
                time.sleep(0.02)
        self.gone.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def dribbling() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dribbling) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def here(
    there: Served, dribbling: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("here")
    (root / "key").touch(0o600)
    (root / "key").write_text(there.keys["admin"])
    far = {"url": f"{there.url}/v1", "key_file": str(root / "key")}
    models: dict[str, Any] = {
        "talking": {"upstream": {**far, "model": "voice", "kind": "speech"}},
        "ranking": {"upstream": {**far, "model": "ranker", "kind": "rerank"}},
        "drawing": {"upstream": {**far, "model": "painter", "kind": "image"}},
    }
    kinds = ("text", "embedding", "speech", "image")
    models |= {
        f"dribbling-{kind}": {"upstream": {"url": dribbling, "kind": kind}} for kind in kinds
    }
    with serve(root, models=models) as served:
        yield served


@pytest.fixture
def client(here: Served, there: Served) -> Iterator[httpx.Client]:
    ASKED.clear()
    with httpx.Client(base_url=here.url, headers=here.headers("admin"), timeout=60) as client:
        yield client
    here.wait_idle()
    there.wait_idle()


def used(client: httpx.Client, model: str) -> dict[str, Any]:
    rows = client.get("/api/v1/usage", params={"group_by": "model"}).json()["data"]
    return next((row for row in rows if row["model"] == model), {})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/inference/text-generation", {"model": "dribbling-text", "prompt": "a"}),
        ("/api/v1/inference/embeddings", {"model": "dribbling-embedding", "input": "a"}),
        (NATIVE_SPEECH, {"model": "dribbling-speech", "text": "a", "format": "mp3"}),
        (NATIVE_IMAGES, {"model": "dribbling-image", "prompt": "a"}),
    ],
)
def test_upstream_that_never_ends_holds_nothing_beyond_the_request_s_timeout(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    Dribbling.gone.clear()
    answer = client.post(path, json={**body, "timeout": 0.5})
    assert answer.status_code == 504, answer.text
    assert Dribbling.gone.wait(60)  # and ``client`` sees that no job runs


def test_upstream_speaks_into_a_file(client: httpx.Client, here: Served) -> None:
    before = used(client, "talking").get("audio_seconds", 0)
    body = {"model": "talking", "input": "hello", "response_format": "wav", "seed": 3}
    more = {"voice": "nova", "speed": 1.5, "language": "de", "sample_rate": RATE}
    answer = client.post(SPEECH, json={**body, **more})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav"), answer.text
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getframerate(), file.readframes(1 << 20)) == (RATE, SAMPLES)
    (job,) = ASKED
    assert isinstance(job, protocol.SpeechJob)
    assert (job.text, job.speed, job.language, job.seed) == ("hello", 1.5, "de", 3)
    assert job.voice == "second"  # the name was passed on as it came
    assert used(client, "talking")["audio_seconds"] == before + 0.5
    native = client.post(NATIVE_SPEECH, json={"model": "talking", "text": "a", "output": "url"})
    made = native.json()["result"]
    assert (made["duration"], made["sample_rate"], made["format"]) == (0.5, RATE, "wav")
    assert client.get(made["url"]).content[:4] == b"RIFF"
    assert not [*here.services.files.folder.glob("*.part")]


def test_upstream_s_speech_is_streamed_as_it_comes(client: httpx.Client) -> None:
    body = {"model": "talking", "input": "hello", "response_format": "pcm"}
    assert client.post(SPEECH, json=body).content == SAMPLES
    (job,) = ASKED
    assert isinstance(job, protocol.SpeechJob)
    assert (job.stream, job.sample_rate) == (True, RATE)
    streamed = {"model": "talking", "text": "hello", "stream": True}
    with client.stream("POST", NATIVE_SPEECH, json=streamed) as stream:
        names = [name for name, _ in iter_events(stream.iter_lines())]
    assert names.count("audio") >= 1, names
    assert names[-1] == "completed"
    refused = client.post(NATIVE_SPEECH, json={**streamed, "format": "mp3"})
    assert "'format'" in refused.text


def test_upstream_s_speech_ends_when_its_client_goes(client: httpx.Client, there: Served) -> None:
    body = {"model": "talking", "input": "!stall", "response_format": "pcm"}
    with client.stream("POST", SPEECH, json=body) as stream:
        assert next(stream.iter_raw())
        eventually(lambda: there.in_flight == 1)
    there.wait_idle()


def test_upstream_s_speech_that_is_none_is_an_error(client: httpx.Client, here: Served) -> None:
    body = {"model": "talking", "input": "!nonsense", "response_format": "wav"}
    failed = client.post(SPEECH, json=body)
    assert (failed.status_code, "no WAV" in failed.text) == (502, True), failed.text
    assert not [*here.services.files.folder.glob("*.part")]
    assert client.post(SPEECH, json={**body, "input": "hello"}).status_code == 200


def test_upstream_alone_gets_instructions(client: httpx.Client, there: Served) -> None:
    body = {"model": "talking", "input": "hello", "response_format": "wav", "instructions": "calm"}
    assert "x-ignored-fields" not in client.post(SPEECH, json=body).headers
    with httpx.Client(base_url=there.url, headers=there.headers("admin")) as far:
        answer = far.post(SPEECH, json={**body, "model": "voice"})
    assert answer.headers["x-ignored-fields"] == "instructions"


DRAW = {"model": "drawing", "prompt": "a fox", "size": "64x72", "seed": 3, "n": 2}


def test_upstream_draws_into_files(client: httpx.Client, here: Served) -> None:
    before = used(client, "drawing").get("megapixels", 0)
    more = {"negative_prompt": "a cat", "steps": 4, "guidance_scale": 2.5, "scheduler": "euler"}
    answer = client.post(IMAGES, json={**DRAW, **more})
    assert answer.status_code == 200, answer.text
    for seed, each in zip((3, 4), answer.json()["data"], strict=True):
        with Image.open(io.BytesIO(b64decode(each["b64_json"]))) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 72))
            assert picture.getpixel((0, 0)) == (seed, 0, 0)
    (job,) = ASKED
    assert isinstance(job, protocol.ImageJob)
    assert (job.prompt, job.negative_prompt, job.steps) == ("a fox", "a cat", 4)
    assert (job.guidance_scale, job.scheduler, job.seeds) == (2.5, "euler", (3, 4))
    assert used(client, "drawing")["megapixels"] - before == pytest.approx(2 * 64 * 72 / 1e6)
    native = {"model": "drawing", "prompt": "a fox", "width": 64, "height": 64, "output": "url"}
    made = client.post(NATIVE_IMAGES, json={**native, "format": "webp"}).json()["result"]
    (picture,) = made["images"]
    assert client.get(picture["url"]).content[8:12] == b"WEBP"
    assert not [*here.services.files.folder.glob("*.part")]


def test_upstream_that_draws_another_size_ends_in_one_error(client: httpx.Client) -> None:
    failed = client.post(IMAGES, json={**DRAW, "prompt": "!small"})
    assert (failed.status_code, "size" in failed.text) == (502, True), failed.text
    assert client.post(IMAGES, json=DRAW).status_code == 200


def test_upstream_s_pictures_end_when_their_client_goes(
    client: httpx.Client, here: Served, there: Served
) -> None:
    task = {"model": "drawing", "prompt": "!stall", "width": 64, "height": 64, "async": True}
    task_id = client.post(NATIVE_IMAGES, json=task).json()["task_id"]
    eventually(lambda: there.in_flight == 1)
    assert client.delete(f"/api/v1/tasks/{task_id}").is_success
    there.wait_idle()
    here.wait_idle()


@pytest.mark.parametrize("masked", [False, True])
def test_upstream_s_pictures_are_made_from_those_that_are_passed_on(
    client: httpx.Client, there: Served, masked: bool
) -> None:
    sent = {"image": ("x.png", a_picture("RGB", "jpeg"))}
    if masked:
        sent["mask"] = ("y.png", a_picture("RGBA", "png"))
    fields = {"model": "drawing", "prompt": "a fox", "strength": "0.5", "seed": "9", "n": "2"}
    answer = client.post("/v1/images/edits", data=fields, files=sent)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    (job,) = ASKED
    assert isinstance(job, protocol.ImageJob)
    assert (job.width, job.height, job.seeds, job.strength) == (64, 72, (9, 10), 0.5)
    assert {name: data for name, (_, data) in sent.items()} == GIVEN
    there.wait_idle()
    assert not [each for each in (job.image, job.mask) if each and Path(each).exists()]
    native = {"model": "drawing", "prompt": "a fox", "width": 64, "height": 64}
    image = b64encode(sent["image"][1]).decode()
    assert client.post(NATIVE_IMAGES, json={**native, "image": image}).status_code == 200
    assert {"image": sent["image"][1]} == GIVEN


def test_upstream_s_pictures_take_no_loras_and_no_previews(client: httpx.Client) -> None:
    form: dict[str, Any] = {
        "model": (None, "drawing"),
        "prompt": (None, "a fox"),
        "stream": (None, "true"),
    }
    form |= {"partial_images": (None, "2"), "image": ("x.png", a_picture("RGB", "png"))}
    refused = client.post("/v1/images/edits", files=form)
    assert "'preview' cannot be passed on" in refused.text
    streamed = client.post(NATIVE_IMAGES, json={"model": "drawing", "prompt": "a fox", "loras": []})
    assert streamed.status_code == 200
    listed = client.get("/api/v1/models/drawing").json()
    assert (listed["type"], "loras" in listed["supported_parameters"]) == ("image", False)
    assert "strength" in listed["supported_parameters"]


def test_upstream_ranks(client: httpx.Client) -> None:
    body = {"model": "ranking", "query": "which", "documents": ["long one", {"text": "one"}]}
    answer = client.post("/v1/rerank", json=body).json()
    results = [(each["index"], each["relevance_score"]) for each in answer["results"]]
    assert results == [(1, -3.0), (0, -8.0)]
    assert answer["usage"]["prompt_tokens"] == 9
    (job,) = ASKED
    assert isinstance(job, protocol.EmbeddingJob)
    assert (job.query, job.texts) == ("which", ("long one", "one"))
    vectors = client.post("/v1/embeddings", json={"model": "ranking", "input": "one"})
    assert (vectors.status_code, "/v1/rerank" in vectors.text) == (400, True)
    assert client.get("/api/v1/models/ranking").json()["task"] == "text-ranking"
