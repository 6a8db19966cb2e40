"""Speech models beside Bark from a real server, and what tiers may ask of sound."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from model_store.store import ModelStore
from tests.support.models.voices import WIDTH, make_speecht5, make_vits, make_vocoder
from tests.support.server import Server, running_server

SAY = "/api/v1/inference/text-to-speech"
SETTINGS = (
    "workers.threads=1",
    "demo=never",
    "models.t5.speech.vocoder=hifigan",
    "models.lost.speech.vocoder=hifigna",
    "models.stray.speech.vocoder=hifigna",
    "limits.tiers.free.speech.max_characters=20",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("voices")
    np.save(folder / "carl.npy", np.ones(WIDTH, np.float32))
    settings = (*SETTINGS, f"models.t5.speech.voices.carl={folder / 'carl.npy'}")
    home = folder / "home"
    home.mkdir(mode=0o700)
    store = ModelStore(home / "models")
    store.import_folder(make_vits(folder / "vits", speakers=2), "mms")
    store.import_folder(make_speecht5(folder / "t5"), "t5")
    store.import_folder(make_speecht5(folder / "mute"), "mute")
    store.import_folder(make_speecht5(folder / "lost"), "lost")
    store.import_folder(make_vits(folder / "stray"), "stray")
    store.import_folder(make_vocoder(folder / "hifigan"), "hifigan")
    words = [word for each in settings for word in ("--set", each)]
    with running_server(home, *words, forked_workers=True) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def sound_of(answer: httpx.Response) -> tuple[Any, int]:
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["result"]["audio"])
    samples, rate = soundfile.read(io.BytesIO(data))
    return samples, rate


def test_sample_rate_is_the_model_s_own_or_that_of_the_request(client: httpx.Client) -> None:
    for model in ("mms", "t5"):
        asked = {"model": model, "text": "hello there", "seed": 1}
        own, rate = sound_of(client.post(SAY, json=asked))
        assert rate == 16_000
        other, rate = sound_of(client.post(SAY, json={**asked, "sample_rate": 8000}))
        assert rate == 8000
        assert len(other) == pytest.approx(len(own) / 2, abs=2)


def test_speed_where_the_model_has_one(client: httpx.Client) -> None:
    asked = {"model": "mms", "text": "hello there", "seed": 1}
    usual, _ = sound_of(client.post(SAY, json=asked))
    fast, _ = sound_of(client.post(SAY, json={**asked, "speed": 2}))
    assert len(fast) < 0.7 * len(usual)
    refused = client.post(SAY, json={**asked, "model": "t5", "speed": 2}).json()["error"]
    assert (refused["code"], refused["param"]) == ("UNSUPPORTED_PARAMETER", "speed")


def test_parameters_of_a_speech_model_are_listed(client: httpx.Client) -> None:
    mms = client.get("/api/v1/models/mms").json()
    assert [voice["id"] for voice in mms["voices"]] == ["speaker_0", "speaker_1"]
    assert "speed" in mms["supported_parameters"]
    t5 = client.get("/api/v1/models/t5").json()
    assert [voice["id"] for voice in t5["voices"]] == ["anna", "bert", "carl"]
    assert not {"speed", "language"} & set(t5["supported_parameters"])


def test_voice_of_the_settings_speaks(client: httpx.Client) -> None:
    asked = {"model": "t5", "text": "hello there", "seed": 1}
    carl, _ = sound_of(client.post(SAY, json={**asked, "voice": "carl"}))
    anna, _ = sound_of(client.post(SAY, json={**asked, "voice": "anna"}))
    assert carl.shape != anna.shape or np.abs(carl - anna).max() > 0


def test_pcm_comes_as_the_openai_clients_play_it(server: Server) -> None:
    official = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)

    def speak(form: Any) -> bytes:
        asked = official.audio.speech.create(
            model="mms",
            input="hello there",
            voice="speaker_1",
            response_format=form,
            extra_body={"seed": 4},
        )
        return asked.content

    own, rate = soundfile.read(io.BytesIO(speak("wav")))
    raw = np.frombuffer(speak("pcm"), "<i2")
    assert rate == 16_000
    assert len(raw) == pytest.approx(len(own) * 24_000 / rate, abs=3)


def test_vocoder_that_is_missing_is_said_with_what_to_do(client: httpx.Client) -> None:
    answer = client.post(SAY, json={"model": "mute", "text": "hello"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "MODEL_LOAD_FAILED")
    assert "speech.vocoder" in error["message"]
    assert client.post(SAY, json={"model": "hifigan", "text": "hello"}).status_code == 400


@pytest.mark.parametrize("model", ["lost", "stray"])
def test_vocoder_that_is_not_in_the_store_is_named(client: httpx.Client, model: str) -> None:
    answer = client.post(SAY, json={"model": model, "text": "hello"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "MODEL_LOAD_FAILED")
    assert "'hifigna'" in error["message"]
    assert "not in the store" in error["message"]


def test_tiers_bound_texts_and_files(server: Server, client: httpx.Client) -> None:
    body = {"name": "guest", "tier": "free", "scopes": ["inference:audio"]}
    key = client.post("/api/v1/keys", json=body).json()["key"]
    with server.client(headers={"X-API-Key": key}) as guest:
        assert guest.post(SAY, json={"model": "mms", "text": "a" * 20}).status_code == 200
        error = guest.post(SAY, json={"model": "mms", "text": "a" * 21}).json()["error"]
        assert (error["code"], error["details"]["max_characters"]) == ("INVALID_REQUEST", 20)
    assert client.post(SAY, json={"model": "mms", "text": "a" * 21}).status_code == 200


def test_command_resamples_too(server: Server, tmp_path: Path) -> None:
    from tests.support.cli_process import run

    path = tmp_path / "out.flac"
    words = ("generate", "speech", "mms", "hello there", "-o", str(path))
    done = run(server.home, *words, "--sample-rate", "44100", "--speed", "1.5")
    assert done.returncode == 0, done.stderr
    assert soundfile.info(path).samplerate == 44_100
