"""Transcription from a real server, both surfaces, by a tiny Whisper that hears nonsense."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from model_store.store import ModelStore
from tests.support.audio import an_hour, voice, wav
from tests.support.cli_process import run, terminal
from tests.support.confinement import check_whole
from tests.support.models.whisper import LENIENT, make
from tests.support.server import Server, running_server
from tests.support.sse import events_of
from tests.support.wait import eventually

ROUTE = "/api/v1/inference/transcription"
MODEL = "tiny-whisper"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("transcription")
    home = folder / "home"
    home.mkdir(mode=0o700)
    ModelStore(home / "models").import_folder(make(folder / "whisper", **LENIENT), MODEL)
    sets = (
        "workers.threads=1",
        "demo=never",
        "limits.transcription.max_seconds=40",
        "limits.transcription.max_channels=2",
        "limits.tiers.free.transcription.max_seconds=3",
        "limits.tiers.free.transcription.max_bytes=200000",
    )
    words = [word for each in sets for word in ("--set", each)]
    with running_server(home, *words, forked_workers=True) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def official(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def ask(client: httpx.Client, data: bytes, **fields: Any) -> httpx.Response:
    return client.post(ROUTE, data={"model": MODEL, **fields}, files={"file": ("a.wav", data)})


def test_parameters_that_a_request_may_set_are_listed(client: httpx.Client) -> None:
    model = client.get(f"/api/v1/models/{MODEL}").json()
    assert set(model["supported_parameters"]) == {
        "language",
        "prompt",
        "task",
        "temperature",
        "timestamps",
    }


def test_form_and_json_give_the_same(client: httpx.Client) -> None:
    form = ask(client, voice(), language="en").json()
    body = {"model": MODEL, "language": "en", "audio": base64.b64encode(voice()).decode()}
    json = client.post(ROUTE, json=body).json()
    assert form["status"] == "completed", form
    assert form["result"] == json["result"]
    assert form["result"]["duration"] == 2.0
    assert form["usage"] == {"audio_seconds": 2.0}
    assert form["result"]["segments"][0]["id"] == 0
    assert "".join(each["text"] for each in form["result"]["segments"]) == form["result"]["text"]


def test_metrics_count_the_audio_seconds_that_were_transcribed(client: httpx.Client) -> None:
    def counted() -> float:
        pattern = rf'bitinglip_audio_seconds_total{{model="{MODEL}"}} (\S+)'
        found = re.search(pattern, client.get("/metrics").text)
        return float(found[1]) if found else 0.0

    before = counted()
    assert ask(client, voice(1.5)).json()["status"] == "completed"
    assert counted() - before == pytest.approx(1.5)


def test_stream_tells_each_segment(client: httpx.Client) -> None:
    events = events_of(ask(client, voice(35), stream="true").text)
    names = [name for name, _ in events if name not in ("queued", "loading", "progress")]
    assert names[0] == "started"
    assert names[-1] == "completed"
    heard = [data["text"] for name, data in events if name == "segment"]
    segments = events[-1][1]["result"]["segments"]
    assert heard == [each["text"] for each in segments] != []


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_format_that_is_usual_is_read(client: httpx.Client, kind: str) -> None:
    answer = ask(client, voice(kind=kind)).json()
    assert answer["result"]["duration"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "make_file",
    [
        lambda: b"",
        lambda: b"not a sound",
        lambda: voice()[:30],
        lambda: voice(41),
        an_hour,
        lambda: wav(rate=0),
        lambda: wav(channels=100),
    ],
    ids=["empty", "text", "cut", "long", "an hour", "0 Hz", "100 channels"],
)
def test_file_that_is_no_audio_is_refused_and_the_worker_lives(
    client: httpx.Client, make_file: Callable[[], bytes]
) -> None:
    answer = ask(client, make_file())
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("INVALID_REQUEST", "file")
    assert ask(client, voice()).status_code == 200


def test_tiers_bound_files(server: Server, client: httpx.Client) -> None:
    body = {"name": "guest", "tier": "free", "scopes": ["inference:audio"]}
    key = client.post("/api/v1/keys", json=body).json()["key"]
    with server.client(headers={"X-API-Key": key}) as guest:
        assert ask(guest, voice(2.9)).status_code == 200
        long = ask(guest, voice(3.1))
        assert (long.status_code, long.json()["error"]["param"]) == (400, "file")
        large = ask(guest, voice(8))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert ask(client, voice(8)).status_code == 200


def test_channels_beyond_the_settings_are_refused(client: httpx.Client) -> None:
    def with_channels(count: int) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, np.zeros((16_000, count)), 16_000, format="WAV")
        return out.getvalue()

    assert ask(client, with_channels(2)).status_code == 200
    refused = ask(client, with_channels(3))
    assert refused.status_code == 400
    assert "3 channels" in refused.json()["error"]["message"]


def test_transcription_request_that_is_wrong_is_refused(client: httpx.Client) -> None:
    assert client.post(ROUTE, data={"model": MODEL}).status_code == 415
    missing = client.post(ROUTE, data={"model": MODEL}, files={"other": b"x"}).json()["error"]
    assert (missing["code"], missing["param"]) == ("UNSUPPORTED_PARAMETER", "other")
    language = ask(client, voice(), language="klingon").json()["error"]
    assert (language["code"], language["param"]) == ("INVALID_REQUEST", "language")
    base = client.post(ROUTE, json={"model": MODEL, "audio": "!"}).json()["error"]
    assert base["param"] == "audio"


def test_openai_client_gets_transcripts_in_each_format(official: openai.OpenAI) -> None:
    def write_down(**more: Any) -> Any:
        return official.audio.transcriptions.create(
            model=MODEL, file=("a.wav", voice()), language="en", **more
        )

    text = write_down().text
    assert write_down(response_format="text").strip() == text.strip()
    assert write_down(response_format="vtt").startswith("WEBVTT\n\n")
    assert " --> " in write_down(response_format="srt")
    whole = write_down(response_format="verbose_json")
    assert (whole.duration, whole.language) == (2.0, "english")
    assert (whole.usage.type, whole.usage.seconds) == ("duration", 2)
    assert whole.segments
    tokens = write_down(include=["logprobs"])
    assert "".join(each.token for each in tokens.logprobs).strip() == tokens.text
    deltas = list(write_down(stream=True))
    assert deltas[-1].type == "transcript.text.done"
    assert "".join(each.delta for each in deltas[:-1]) == deltas[-1].text
    with pytest.raises(openai.BadRequestError) as refused:
        write_down(timestamp_granularities=["word"])
    assert refused.value.param == "timestamp_granularities"
    with pytest.raises(openai.BadRequestError) as refused:
        official.audio.transcriptions.create(model=MODEL, file=("a.wav", b"nothing"))
    assert refused.value.param == "file"


@pytest.mark.parametrize(
    "fields",
    [
        {"language": ""},
        {"language": "auto"},
        {"language": "en"},
        {"language": "en-US"},
        {"language": "EN"},
        {"language": "english"},
        {"language": "English"},
        {"language": "zh-cn"},
        {"timestamp_granularities": ["word", "segment"]},
        {"timestamp_granularities[]": "word", "timestamp_granularities": "segment"},
        {"timestamp_granularities[0]": "word", "timestamp_granularities[1]": "segment"},
        {"chunking_strategy": "auto", "vad_filter": "true", "stream": "false", "prompt": "names"},
    ],
    ids=str,
)
def test_transcription_takes_what_clients_send(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    asked = {"model": MODEL, "response_format": "verbose_json", **fields}
    answer = client.post("/v1/audio/transcriptions", data=asked, files={"file": ("a.wav", voice())})
    assert answer.status_code == 200, answer.text
    assert answer.json()["segments"]
    assert ("words" in answer.json()) == any(name.startswith("timestamp") for name in fields)
    assert answer.headers.get("x-ignored-fields") == (
        "vad_filter" if "vad_filter" in fields else None
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "pt-BR"}, "language"),  # which the tiny model was not taught
        ({"language": "klingon"}, "language"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),  # json has no place
    ],
    ids=str,
)
def test_transcription_refuses_by_name(
    client: httpx.Client, fields: dict[str, str], param: str
) -> None:
    files = {"file": ("a.wav", voice())}
    data = {"model": MODEL, **fields}
    refused = client.post("/v1/audio/transcriptions", data=data, files=files)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(("seconds", "counted"), [(5, 5), (0.01, 1)])
def test_silence_has_no_words(client: httpx.Client, seconds: float, counted: int) -> None:
    """The tiny model takes everything for speech; of no sound at all it is not believed."""
    silence = wav(data=bytes(int(seconds * 32_000)))
    fields = {"model": MODEL, "include[]": "logprobs", "temperature": "0"}
    answer = client.post(
        "/v1/audio/transcriptions", data=fields, files={"file": ("a.wav", silence)}
    )
    assert answer.json()["text"] == ""
    assert answer.json()["usage"] == {"type": "duration", "seconds": counted}


def test_form_as_open_webui_sends_it_is_read(client: httpx.Client) -> None:
    """Its parts have types, the file comes as bytes of no type, and nothing says how long it is."""
    part = b"--b0\r\nContent-Type: %b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n"
    text = b"text/plain; charset=utf-8"
    parts = [
        part % (text, b'"model"', MODEL.encode()),
        part % (text, b'"language"', b"en-US"),
        part % (b"application/octet-stream", b'"file"; filename="4ee3.wav"', voice()),
    ]
    kind = {"Content-Type": "multipart/form-data; boundary=b0"}
    whole = iter([*parts, b"--b0--\r\n"])
    answer = client.post("/v1/audio/transcriptions", content=whole, headers=kind)
    assert answer.status_code == 200, answer.text


def test_translations_are_into_english(client: httpx.Client) -> None:
    files = {"file": ("a.wav", voice())}
    fields = {"model": MODEL, "response_format": "verbose_json"}
    answer = client.post("/v1/audio/translations", data=fields, files=files).json()
    assert answer["task"] == "translate"
    assert answer["segments"]
    fields = {"model": MODEL, "language": "en"}
    other = client.post("/v1/audio/translations", data=fields, files=files)
    assert other.headers["x-ignored-fields"] == "language"  # the API has it for transcriptions


# ---- bitinglip transcribe ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def transcript(server: Server) -> str:
    """Provide the text of the file that commands transcribe."""
    with server.client() as client:
        return str(ask(client, voice(35)).json()["result"]["text"])


@pytest.fixture
def heard(server: Server, transcript: str, tmp_path: Path) -> tuple[Path, str]:
    """Provide a folder beside the home, with an audio file in it, and the file's text."""
    (tmp_path / "home").symlink_to(server.home)
    (tmp_path / "a.wav").write_bytes(voice(35))
    return tmp_path, transcript


def test_command_transcribes_a_file(heard: tuple[Path, str]) -> None:
    folder, text = heard
    done = run(folder / "home", "transcribe", "a.wav")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == text.split()
    piped = run(folder / "home", "transcribe", "-", stdin=(folder / "a.wav").read_bytes())
    assert piped.stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (("-o", "a.srt"), "1\n00:00:0"),
        (("-o", "a.vtt"), "WEBVTT\n\n00:00:0"),
        (("-o", "a.txt", "--format", "srt"), "1\n00:00:0"),
    ],
)
def test_command_writes_subtitles(
    heard: tuple[Path, str], words: tuple[str, ...], start: str
) -> None:
    folder, _ = heard
    done = run(folder / "home", "transcribe", "a.wav", *words, "--language", "en")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"Wrote {words[1]} (35.0 s of sound in ")
    assert (folder / words[1]).read_text().startswith(start)


def test_command_prints_json_with_words(heard: tuple[Path, str]) -> None:
    folder, _ = heard
    done = run(folder / "home", "transcribe", "a.wav", "--json", "--words", "-m", MODEL)
    result = json.loads(done.stdout)["result"]
    assert any(segment.get("words") for segment in result["segments"])


def test_terminal_shows_the_text_as_it_comes(heard: tuple[Path, str]) -> None:
    folder, text = heard
    with terminal(folder / "home", "transcribe", "a.wav") as shell:
        shell.wait_for(re.escape(text.split()[0]))
        shell.wait_for(r"35\.0 s of sound in ")
        assert shell.wait_for_end() == 0
    with terminal(folder / "home", "transcribe", "a.wav", "-o", "a.txt") as shell:
        shell.wait_for("sending the file|listening|writing down|finishing")
        shell.wait_for("Wrote a.txt")
        assert shell.wait_for_end() == 0


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("missing.wav",), "missing.wav cannot be read", 1),
        (("home/admin.key",), "not a sound file", 1),
        (("a.wav", "-m", "nobody"), "Available: tiny-whisper", 1),
        (("a.wav", "--language", "klingon"), "klingon", 1),
        (("a.wav", "--words"), "--json", 2),
    ],
)
def test_command_says_what_is_wrong(
    heard: tuple[Path, str], words: tuple[str, ...], said: str, code: int
) -> None:
    done = run(heard[0] / "home", "transcribe", *words)
    assert done.returncode == code
    assert said in " ".join(done.stderr.split())


def test_upload_is_gone_once_its_request_has_ended(server: Server, client: httpx.Client) -> None:
    assert ask(client, voice()).status_code == 200
    assert ask(client, b"no sound at all").status_code == 400
    task = client.post(
        ROUTE,
        data={"model": MODEL},
        files={"file": ("a.wav", voice())},
        headers={"Prefer": "respond-async"},
    )
    assert task.status_code == 202, task.text
    path = f"/api/v1/tasks/{task.json()['task_id']}"
    eventually(lambda: client.get(path).json()["status"] == "completed")
    eventually(lambda: not list((server.home / "uploads").iterdir()))
    left = {path.name for path in Path(server.home / "files").iterdir()}
    assert all(name.startswith("task-") and name.endswith("-file") for name in left)


def test_confinement_of_a_transcription_worker_is_whole(server: Server) -> None:
    with server.client() as client:
        client.post(f"/api/v1/models/{MODEL}/load").raise_for_status()
    check_whole(server.worker(MODEL))
