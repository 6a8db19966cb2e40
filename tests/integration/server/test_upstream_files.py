"""Models of another gateway that make files: sounds and pictures, over real HTTP."""

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import save_file

from tests.support.api_server import Served, serve
from tests.support.model_folders import llama_tensors, write
from tests.support.sse import iter_events
from tests.support.wait import eventually
from workers import protocol

SPEECH = "/v1/audio/speech"
NATIVE_SPEECH = "/api/v1/inference/text-to-speech"
RATE = 24_000
SAMPLES = bytes(range(240)) * 100
ASKED = list[protocol.Job]()  #: of the workers there


def wav(samples: bytes) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples)
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


async def work(job: protocol.Job) -> AsyncIterator[protocol.JobEvent]:
    """Make what the workers there make."""
    ASKED.append(job)
    assert isinstance(job, protocol.SpeechJob)
    async for event in speak(job):
        yield event


def speech_model(folder: Path) -> Path:
    write(folder / "config.json", {"architectures": ["VitsModel"], "model_type": "vits"})
    write(folder / "vocab.json", {"a": 0})
    save_file(llama_tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("there")
    voices = {"speech": {"voice_aliases": {"nova": "second"}}}
    with serve(root, work, models={"voice": voices}) as served:
        body = {"path": str(speech_model(root / "vits")), "name": "voice"}
        url = f"{served.url}/api/v1/models/import"
        made = httpx.post(url, json=body, headers=served.headers("admin"), timeout=60)
        assert made.is_success, made.text
        yield served


@pytest.fixture(scope="module")
def here(there: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("here")
    (root / "key").write_text(there.keys["admin"])
    far = {"url": f"{there.url}/v1", "key_file": str(root / "key")}
    models: dict[str, Any] = {
        "talking": {"upstream": {**far, "model": "voice", "kind": "speech"}},
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
