"""The guard over real sockets: prompts, bodies, streams, tasks and WebSockets, on both surfaces."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.api.guarding import checked_job
from bitinglip.api.request_context import RequestContext
from bitinglip.errors import PersonalDataDetected
from bitinglip.guard.folding import fold
from bitinglip.guard.modes import Modes
from bitinglip.scheduling.job import Job
from tests.support.api_server import Served, serve
from tests.support.http_client import CHAT, NATIVE, error_of
from tests.support.speaking_worker import say, speak
from tests.support.sse import STREAM_END, events_of
from tests.support.task_client import await_status, begin
from tests.support.websocket_client import heard, open_watch
from workers import protocol

SCOPE = "inference:text"
MAIL, CARD = "john.doe@example.com", "4111 1111 1111 1111"
TEXT = f"Write to {MAIL}, not to {CARD} today."
REDACTED = "Write to [EMAIL], not to [CARD] today."
TIERS = {"free": "redact", "pro": "block", "enterprise": "report"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a server where each tier has a mode of its own; that of the operator's key is off."""
    tiers = {name: {"guard": {"input": mode, "output": mode}} for name, mode in TIERS.items()}
    with serve(tmp_path_factory.mktemp("guard"), speak, limits={"tiers": tiers}) as served:
        with httpx.Client(base_url=served.url, headers=served.headers("admin")) as admin:
            for tier, mode in TIERS.items():
                answer = admin.post("/api/v1/keys", json={"name": mode, "tier": tier})
                served.keys[mode] = answer.json()["key"]
        served.keys["off"] = served.keys["admin"]
        yield served


def _client(served: Served, mode: str) -> httpx.Client:
    return httpx.Client(base_url=served.url, headers=served.headers(mode), timeout=60)


@pytest.fixture(params=["off", "report", "redact", "block"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _native(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": prompt, **fields}


def _chat(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": prompt}], **fields}


# ---- prompts -------------------------------------------------------------------------------------


def test_guard_acts_on_a_prompt_by_its_mode(served: Served, mode: str) -> None:
    with _client(served, mode) as client:
        served.workers.jobs.clear()
        answer = client.post(NATIVE, json=_native(TEXT))
        if mode == "block":
            error = error_of(answer, 400, "PII_DETECTED")
            assert error["details"] == {"classes": ["card", "email"], "count": 2}
            assert error["param"] == "prompt"
            assert MAIL not in answer.text
            assert answer.headers["x-should-retry"] == "false"
            assert served.workers.jobs == []
        else:
            (job,) = served.workers.jobs
            assert isinstance(job, protocol.TextJob)
            assert job.prompt == (REDACTED if mode == "redact" else TEXT)
    served.wait_idle()


def test_guard_checks_every_message_and_part_of_a_chat(served: Served) -> None:
    parts = [{"type": "text", "text": MAIL[:7]}, {"type": "text", "text": MAIL[7:]}]
    messages = [
        {"role": "system", "content": f"You are {MAIL}"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": CARD},
    ]
    with _client(served, "redact") as client:
        served.workers.jobs.clear()
        assert client.post(CHAT, json={"model": "demo", "messages": messages}).status_code == 200
        (job,) = served.workers.jobs
        assert isinstance(job, protocol.TextJob)
        assert [each.content for each in job.messages or ()] == [
            *("You are [EMAIL]", "[EMAIL]", "well", "[CARD]")
        ]
    with _client(served, "block") as client:
        error = error_of(client.post(CHAT, json=_chat(f"I am {MAIL}")), 400, "PII_DETECTED")
        assert error["param"] == "messages[0].content"


def test_prompt_of_a_task_is_stored_redacted(served: Served) -> None:
    with _client(served, "redact") as client:
        served.workers.jobs.clear()
        task_id = begin(client, _native(TEXT))
        assert await_status(client, task_id, "completed")["result"]["text"] == REDACTED
        assert [getattr(job, "prompt", "") for job in served.workers.jobs] == [REDACTED]
    with _client(served, "block") as client:
        error_of(client.post(NATIVE, json=_native(TEXT, **{"async": True})), 400, "PII_DETECTED")


@pytest.mark.parametrize(
    ("path", "param", "said"),
    [
        ("/v1/audio/speech", "input", {"text": TEXT}),
        ("/v1/audio/speech", "instructions", {"text": "hello", "instructions": TEXT}),
        ("/api/v1/inference/text-to-speech", "text", {"text": TEXT}),
    ],
)
def test_guard_names_the_text_of_speech_as_the_surface_does(
    served: Served, path: str, param: str, said: dict[str, Any]
) -> None:
    work = protocol.SpeechJob(id="j", seed=1, folder="f", **said)
    job = Job(work=work, model="m", key_id="k", guard=Modes(input="block"))
    scope = {"type": "http", "app": served.app, "path": path}
    RequestContext("r", served.services, {}).attach(scope)
    check = checked_job(scope, job)
    with pytest.raises(PersonalDataDetected) as refused:
        asyncio.run_coroutine_threadsafe(check, served.loop).result()
    assert refused.value.param == param


def test_long_prompt_is_redacted_across_slices(served: Served) -> None:
    text = "a word " * 2339 + MAIL  # 4 times 4096 characters, which are scanned at once, end inside
    with _client(served, "redact") as client:
        served.workers.jobs.clear()
        client.post(NATIVE, json=_native(text)).raise_for_status()
        (job,) = served.workers.jobs
        assert isinstance(job, protocol.TextJob)
        assert job.prompt == "a word " * 2339 + "[EMAIL]"


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_guard_acts_on_a_body_by_its_mode(served: Served, mode: str, size: int) -> None:
    with _client(served, mode) as client:
        native = client.post(NATIVE, json=_native(say(TEXT, size)))
        chat = client.post(CHAT, json=_chat(say(TEXT, size)))
    if mode == "block":
        for answer in (native, chat):
            error = error_of(answer, 400, "PII_DETECTED")
            assert "email" in error["details"]["classes"]  # the first; then the answer was ended
        return
    shown = REDACTED if mode == "redact" else TEXT
    assert native.json()["result"] == {"text": shown, "finish_reason": "stop"}
    assert native.json()["usage"]["completion_tokens"] == -(-len(TEXT) // size)
    assert chat.json()["choices"][0]["message"]["content"] == shown
    assert chat.json()["choices"][0]["finish_reason"] == "stop"
    served.wait_idle()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_native_stream_is_redacted_as_its_result_is(served: Served, size: int) -> None:
    with _client(served, "redact") as client:
        body = client.post(NATIVE, json=_native(say(TEXT, size), stream=True)).text
    events = events_of(body)
    assert "".join(data["text"] for name, data in events if name == "token") == REDACTED
    assert events[-1][0] == "completed"
    assert events[-1][1]["result"]["text"] == REDACTED
    assert events[-1][1]["usage"]["completion_tokens"] == -(-len(TEXT) // size)
    indexes = [data["index"] for name, data in events if name == "token"]
    assert indexes == sorted(indexes)


def test_openai_stream_is_redacted(served: Served) -> None:
    with _client(served, "redact") as client:
        answer = client.post(CHAT, json=_chat(say(TEXT), stream=True))
        legacy = client.post("/v1/completions", json=_native(say(TEXT), stream=True))
    events = events_of(answer.text)
    assert events[-1] == STREAM_END
    choices = [data["choices"][0] for _, data in events[:-1]]
    assert "".join(each["delta"].get("content", "") for each in choices) == REDACTED
    assert choices[-1]["finish_reason"] == "stop"
    texts = [data["choices"][0]["text"] for _, data in events_of(legacy.text)[:-1]]
    assert "".join(texts) == REDACTED


def test_websocket_and_task_are_redacted(served: Served) -> None:
    with _client(served, "redact") as client:
        task_id = begin(client, _native(say(TEXT)))
        done = await_status(client, task_id, "completed")
    with open_watch(served.url, task_id, **{"X-API-Key": served.keys["redact"]}) as socket:
        messages, _ = heard(socket)
    assert done["result"]["text"] == REDACTED
    assert "".join(data["text"] for name, data in messages if name == "token") == REDACTED
    assert messages[-1][1]["result"]["text"] == REDACTED
    assert MAIL not in json.dumps(messages)


def test_blocked_stream_shows_what_came_before_and_ends_with_the_error(served: Served) -> None:
    text = "A long beginning without anything in it. " + TEXT
    with _client(served, "block") as client:
        native = events_of(client.post(NATIVE, json=_native(say(text), stream=True)).text)
        chat = events_of(client.post(CHAT, json=_chat(say(text), stream=True)).text)
    shown = "".join(data["text"] for name, data in native if name == "token")
    assert text.partition(MAIL)[0].startswith(shown)
    assert native[-1][0] == "failed"
    assert native[-1][1]["error"]["code"] == "PII_DETECTED"
    assert native[-1][1]["error"]["details"] == {"classes": ["email"], "count": 1}
    assert chat[-1][1]["error"]["code"] == "pii_detected"
    assert STREAM_END not in chat
    assert "john" not in json.dumps([native, chat])
    served.wait_idle()


def test_logprobs_hold_nothing_of_redacted_text(served: Served) -> None:
    with _client(served, "redact") as client:
        plain = client.post(NATIVE, json=_native(say("nothing here"), logprobs=0)).json()
        body = client.post(NATIVE, json=_native(say(TEXT), logprobs=0)).json()
        stream = client.post(NATIVE, json=_native(say(TEXT), logprobs=0, stream=True)).text
    assert "".join(each["token"] for each in plain["result"]["logprobs"]) == "nothing here"
    streamed = [
        each["token"]
        for name, data in events_of(stream)
        if name == "token"
        for each in data.get("logprobs", ())
    ]
    assert streamed == [each["token"] for each in body["result"]["logprobs"]]
    joined = "".join(streamed)
    assert joined.startswith("Write ")
    assert joined.endswith("day.")
    assert not any(part in joined for part in ("john", "doe", "exa", "411", "111"))


def test_redacted_answer_is_never_cached_and_another_is(tmp_path: Path) -> None:
    tiers = {"pro": {"guard": {"output": "off"}}}
    options: dict[str, Any] = {
        "guard": {"input": "redact", "output": "redact"},
        "cache": {"responses": True, "scope": "all"},
        "limits": {"tiers": tiers},
    }

    def asked(client: httpx.Client, prompt: str, shown: str) -> str:
        answer = client.post(NATIVE, json=_native(prompt, temperature=0))
        assert answer.json()["result"]["text"] == shown
        return answer.headers["x-cache"]

    with serve(tmp_path, speak, **options) as served:
        headers = {"X-API-Key": served.keys["admin"]}
        body = {"name": "unguarded results", "tier": "pro"}
        made = httpx.post(f"{served.url}/api/v1/keys", json=body, headers=headers)
        served.keys["pro"] = made.json()["key"]
        with _client(served, SCOPE) as redacted, _client(served, "pro") as whole:
            assert [asked(redacted, say(TEXT), REDACTED) for _ in range(3)] == ["MISS"] * 3
            assert [asked(whole, say(TEXT), TEXT) for _ in range(2)] == ["MISS", "HIT"]
            assert asked(redacted, say(TEXT), REDACTED) == "MISS"
            assert [asked(redacted, "fine", "fine") for _ in range(2)] == ["MISS", "HIT"]
            assert asked(redacted, f"I am {MAIL}", "I am [EMAIL]") == "MISS"
            assert asked(redacted, "I am a@b.example", "I am [EMAIL]") == "HIT"


# ---- what is told of it --------------------------------------------------------------------------


def test_guard_counts_detections_by_class_and_logs_no_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guard = {"input": "report", "output": "redact"}
    with serve(tmp_path, speak, guard=guard, logging={"level": "debug"}) as served:
        with _client(served, SCOPE) as client:
            client.post(NATIVE, json=_native(TEXT)).raise_for_status()
        metrics = httpx.get(f"{served.url}/metrics").text
    for name in ("card", "email"):
        for direction, action in (("input", "report"), ("output", "redact")):
            labels = f'action="{action}",class="{name}",direction="{direction}"'
            assert f"bitinglip_guard_detections_total{{{labels}}} 1.0" in metrics
    told = capfd.readouterr()
    assert MAIL not in metrics + told.out + told.err
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file():
            assert MAIL.encode() not in path.read_bytes(), path
            assert CARD.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("on_error", ["close", "open"])
def test_guard_that_fails_refuses_or_passes_and_is_in_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    guard = {"input": "redact", "output": "redact", "on_error": on_error}

    def failing(text: str) -> tuple[str, list[int] | None]:
        if "!fail" in text:
            raise ValueError(f"invalid: {text}")
        return fold(text)

    monkeypatch.setattr("bitinglip.guard.scanner.fold", failing)
    with serve(tmp_path, speak, guard=guard) as served, _client(served, SCOPE) as client:
        prompt = client.post(NATIVE, json=_native(f"{TEXT} !fail"))
        result = client.post(NATIVE, json=_native(say(f"{TEXT} !fail x", 7), stream=True)).text
        sick = client.get("/health").json()
        metrics = httpx.get(f"{served.url}/metrics").text
        client.post(NATIVE, json=_native("well")).raise_for_status()
        well = client.get("/health").json()
    name, data = events_of(result)[-1]
    shown = "".join(data["text"] for name, data in events_of(result) if name == "token")
    if on_error == "close":
        error_of(prompt, 503, "OVERLOADED")
        assert (name, data["error"]["code"]) == ("failed", "OVERLOADED")
        assert REDACTED.startswith(shown.rstrip("! "))
    else:
        assert prompt.json()["result"]["text"] == f"{TEXT} !fail"
        assert name == "completed"
        assert shown == data["result"]["text"] == f"{REDACTED} !fail x"
    assert sick["status"] == "degraded"
    assert "ValueError" in sick["checks"]["guard"]["detail"]
    assert MAIL not in json.dumps(sick)
    action = "refused" if on_error == "close" else "passed"
    labels = f'action="{action}",direction="output"'
    failed = 1.0 if on_error == "close" else 2.0  # then the prompt's own answer failed, too
    assert f"bitinglip_guard_failures_total{{{labels}}} {failed}" in metrics
    assert 'bitinglip_degraded{check="guard"} 1.0' in metrics
    assert well["checks"]["guard"]["ok"]


def test_guard_that_cannot_be_made_leaves_nothing_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_given: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("bitinglip.guard.guard.output_of", failing)
    with serve(tmp_path, speak, guard={"output": "redact"}) as served:
        with _client(served, SCOPE) as client:
            error_of(client.post(NATIVE, json=_native("hello")), 500, "INTERNAL_ERROR")
        served.wait_idle()
        assert not any(served.services.dispatcher.books().values())


@pytest.mark.parametrize("background", [False, True])
def test_guard_keeps_no_personal_data_with_a_response(served: Served, *, background: bool) -> None:
    begun = {"model": "demo", "instructions": "Be kind.", "background": background}
    with _client(served, "redact") as client:
        made = client.post("/v1/responses", json={**begun, "input": TEXT}).json()
        kept = client.get(f"/v1/responses/{made['id']}/input_items").text
    assert REDACTED in kept
    assert MAIL not in kept
    assert "Be kind" not in kept
