"""Speech from a real server: both surfaces, files, streams, tasks, and the command."""

import base64
import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

from tests.support.cli_process import run, terminal
from tests.support.confinement import check_whole
from tests.support.server import Server
from tests.support.sse import events_of
from tests.support.task_client import await_status, new_client, task
from tests.support.wait import eventually
from tests.support.websocket_client import heard, open_watch

ROUTE = "/api/v1/inference/text-to-speech"
ASKED: dict[str, Any] = {
    "model": "demo-speech",
    "text": "Hello there. Fine!",
    "voice": "speaker_1",
    "language": "en",
    "seed": 3,
}


def samples_of(data: bytes) -> Any:
    return soundfile.read(io.BytesIO(data), dtype="int16")[0].astype(int)


def sound_of(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["result"]["audio"])


def test_speech_request_answers_the_same_file_for_a_seed(server: Server) -> None:
    with server.client() as client:
        answer = client.post(ROUTE, json=ASKED).json()
        again = client.post(ROUTE, json=ASKED).json()
    result = answer["result"]
    assert (result["format"], result["sample_rate"]) == ("wav", 24_000)
    assert (result["voice"], result["sentences"]) == ("v2/en_speaker_1", 2)
    assert len(samples_of(sound_of(answer))) == round(result["duration"] * 24_000)
    assert answer["usage"] == {"characters": 18, "audio_seconds": result["duration"]}
    assert sound_of(answer) == sound_of(again)


def test_speech_stream_is_the_file_sentence_by_sentence(server: Server) -> None:
    with server.client() as client:
        events = events_of(client.post(ROUTE, json={**ASKED, "stream": True}).text)
    names = [name for name, _ in events if name not in ("queued", "loading")]
    assert names[:3] == ["started", "audio", "progress"]
    assert names[-1] == "completed"
    pieces = [data for name, data in events if name == "audio"]
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    streamed = b"".join(base64.b64decode(piece["b64"]) for piece in pieces)
    whole = samples_of(sound_of(events[-1][1]))
    assert np.abs(np.frombuffer(streamed, "<i2") - whole).max() <= 1


def test_batch_of_speech_gives_what_each_is_alone(server: Server) -> None:
    bodies = [{**ASKED, "seed": seed, "voice": f"speaker_{seed % 2}"} for seed in range(3)]

    def ask(body: dict[str, Any]) -> Any:
        with server.client() as client:
            return samples_of(sound_of(client.post(ROUTE, json=body).json()))

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(ask, bodies))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_task_keeps_its_file_for_its_owner(server: Server) -> None:
    with new_client(server, ["inference:audio"]) as owner:
        answer = owner.post(ROUTE, json={**ASKED, "output": "url", "format": "mp3", "async": True})
        assert answer.status_code == 202
        task_id = answer.json()["task_id"]
        await_status(owner, task_id, "completed")
        url = task(owner, task_id)["result"]["url"]
        found = owner.get(url)
        assert found.headers["content-type"] == "audio/mpeg"
        assert len(samples_of(found.content))
    with new_client(server, ["inference:audio"]) as other:
        assert other.get(url).status_code == 404
    with open_watch(server.url, task_id, **server.headers) as socket:
        messages, code = heard(socket)
    assert code == 1000
    assert [name for name, _ in messages if name == "audio"]
    assert messages[-1][0] == "completed"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"voice": "../../admin.key"}, "INVALID_REQUEST", "voice"),
        ({"language": "xx"}, "INVALID_REQUEST", "language"),
        ({"speed": 1.5}, "UNSUPPORTED_PARAMETER", "speed"),
        ({"speed": 9}, "INVALID_REQUEST", "speed"),
        ({"text": " \n"}, "INVALID_REQUEST", "text"),
        ({"text": "a" * 4097}, "INVALID_REQUEST", "text"),
        ({"format": "aac"}, "INVALID_REQUEST", "format"),
        ({"model": "demo-text"}, "INVALID_REQUEST", "model"),
        ({"pitch": 1}, "UNSUPPORTED_PARAMETER", "pitch"),
    ],
)
def test_speech_request_that_is_wrong_is_refused(
    server: Server, change: dict[str, Any], code: str, param: str
) -> None:
    with server.client() as client:
        answer = client.post(ROUTE, json={**ASKED, **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    if param == "voice":
        assert "v2/en_speaker_1" in error["details"]["voices"]


def test_openai_client_gets_speech_in_each_format(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    extra = {"language": "en", "seed": 3}

    def speak(**more: Any) -> Any:
        return client.audio.speech.create(
            model="demo-speech",
            input="Fine!",
            voice="speaker_1",
            extra_body=extra,
            **more,
        )

    wav = samples_of(speak(response_format="wav").content)
    for form, kind in [("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("flac", "audio/flac")]:
        answer = speak(response_format=form)
        assert answer.response.headers["content-type"] == kind
        assert len(samples_of(answer.content)) / 24_000 == pytest.approx(
            len(wav) / 24_000, abs=0.08
        )
    pcm = np.frombuffer(speak(response_format="pcm").content, "<i2")
    assert np.abs(pcm - wav).max() <= 1
    aac = speak(response_format="aac")
    assert aac.response.headers["content-type"] == "audio/aac"
    assert aac.content[:2] == b"\xff\xf1"  # ADTS
    fast = samples_of(speak(response_format="wav", speed=2).content)
    assert len(fast) == pytest.approx(len(wav) / 2, abs=2400)
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.speech.create(model="demo-speech", input="x", voice="nobody")
    assert refused.value.param == "voice"
    assert "v2/en_speaker_1" in refused.value.body["details"]["voices"]  # type: ignore[index]


def test_openai_s_voice_names_stand_for_the_model_s_own(server: Server) -> None:
    body = {"model": "demo-speech", "input": "Hello.", "seed": 3, "response_format": "wav"}
    with server.client() as client:

        def speak(**more: Any) -> bytes:
            answer = client.post("/v1/audio/speech", json={**body, **more})
            assert answer.status_code == 200, answer.text
            return answer.content

        first = speak(voice="v2/en_speaker_0")
        assert speak(voice="alloy") == speak(voice={"id": "alloy"}) == first
        assert speak(voice="ash") == speak(voice="v2/en_speaker_1") != first
        assert speak(voice="alloy", language="de-DE") == speak(voice="v2/de_speaker_0")
        assert speak(voice="alloy", language="auto", speed=1) == first
        hinted = client.post(
            "/v1/audio/speech", json={**body, "voice": "alloy", "instructions": "calm"}
        )
    assert (hinted.content, hinted.headers["x-ignored-fields"]) == (first, "instructions")


def test_openai_stream_has_the_events_of_its_surface(server: Server) -> None:
    body = {
        "model": "demo-speech",
        "input": ASKED["text"],
        "response_format": "pcm",
        "stream_format": "sse",
    }
    with server.client() as client:
        events = events_of(client.post("/v1/audio/speech", json=body).text)
        mp3 = client.post("/v1/audio/speech", json={**body, "response_format": "mp3"})
    assert {data["type"] for _, data in events[:-1]} == {"speech.audio.delta"}
    assert events[-1][1]["type"] == "speech.audio.done"
    assert mp3.json()["error"]["param"] == "response_format"


def test_retry_after_a_kill_gives_the_same_file(server: Server) -> None:
    with server.client() as client, ThreadPoolExecutor() as pool:
        whole = client.post(ROUTE, json={**ASKED, "text": "Hello there. " * 6}).json()
        asked = pool.submit(client.post, ROUTE, json={**ASKED, "text": "Hello there. " * 6})
        eventually(lambda: server.worker("demo-speech")["in_flight"] == 1)
        os.kill(server.worker("demo-speech")["pid"], signal.SIGKILL)
        assert sound_of(asked.result().json()) == sound_of(whole)


def test_voices_are_listed(server: Server) -> None:
    with server.client() as client:
        found = client.get("/api/v1/models/demo-speech").json()
    assert found["type"] == "audio"
    assert {"id": "v2/de_speaker_0", "language": "de", "gender": None} in found["voices"]
    shown = run(server.home, "models", "show", "demo-speech")
    assert "v2/fr_speaker_1" in shown.stdout


def test_command_writes_a_file_and_shows_the_sentences(server: Server, tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to(server.home)
    say = ("generate", "speech", "demo-speech")
    done = run(tmp_path / "home", *say, "Hello there!", "--seed", "3", "--language", "en")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Wrote hello-there-3.wav (")
    assert len(samples_of((tmp_path / "hello-there-3.wav").read_bytes()))
    done = run(tmp_path / "home", *say, "Hi.", "-o", "a.mp3", "--voice", "en_speaker_0")
    assert (tmp_path / "a.mp3").exists(), done.stderr
    bad = run(tmp_path / "home", *say, "Hi.", "-o", "a.aac")
    assert (bad.returncode, "should end in .wav" in " ".join(bad.stderr.split())) == (2, True)
    bad = run(tmp_path / "home", *say, "Hi.", "--voice", "alloy")
    assert (bad.returncode, "it has v2/de_speaker_0, v2" in bad.stderr) == (1, True)
    with terminal(tmp_path / "home", *say, "Hello there. " * 5, "-o", "b.wav") as shell:
        shell.wait_for(r"speaking .*sentence +[0-9]+/5")
        shell.wait_for("Wrote b.wav")
        assert shell.wait_for_end() == 0


def test_confinement_of_a_speech_worker_is_whole(server: Server) -> None:
    with server.client() as client:
        client.post("/api/v1/models/demo-speech/load").raise_for_status()
    check_whole(server.worker("demo-speech"))
